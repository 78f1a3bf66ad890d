"""The sources of a blend, opened: shards, their text token counts, and so the cost of every sample without decoding it."""

from collections.abc import Mapping

from nvlm_train.config import schema
from nvlm_train.contracts import Sample
from nvlm_train.data.counts import TextCounts
from nvlm_train.data.encode import Encoder, Plan
from nvlm_train.data.features import CachedFeatures, FeatureKey
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import ConfigError, SampleRefused


class Source:
    """One folder of shards under its name in the blend. Safe in several threads."""

    def __init__(self, name: str, folder: ShardFolder, encoder: Encoder, features: FeatureKey | None = None):
        """Counts the folder's text tokens if that has not been done for this tokenizer and template (see `counts`).

        features: of the cache that stands in for pictures; None: pictures are read.
        """
        self.name, self.folder, self.encoder = name, folder, encoder
        self.counts = TextCounts(folder, encoder)
        self.features = CachedFeatures(folder, features) if features else None

    def __len__(self) -> int:
        return len(self.folder)

    def key(self, sample: int) -> str:
        return self.folder.key(sample)

    def plan(self, sample: int) -> Plan:
        """Grids and cost of a sample. Raises SampleRefused for everything that is known before decoding."""
        sizes = self.folder.image_sizes(sample)
        if (0, 0) in sizes:
            raise SampleRefused("broken_image", f"image {sizes.index((0, 0))} of {self.folder.where(sample)} had no readable header")
        return self.encoder.plan(self.counts.tokens(sample), sizes)

    def read(self, sample: int) -> Sample:
        """The sample's bytes, verified. Raises SampleRefused or DataError as `ShardFolder.read`."""
        return self.folder.read(sample)


def open_sources(blend: Mapping[str, schema.Source], encoder: Encoder, setting: str = "data.blend",
                 features: FeatureKey | None = None) -> list[Source]:
    """Every source of a blend, in its order. `setting` names the blend in messages. Raises ConfigError, DataError."""
    without = [name for name, source in blend.items() if not source.path]
    if not blend or without:
        what = f"no path for {', '.join(without)}" if without else "it is empty"
        raise ConfigError(f"{setting}: {what}. Name a folder of indexed shards, for example {setting}.mine.path=FOLDER")
    return [Source(name, ShardFolder(source.path, name), encoder, features) for name, source in blend.items()]
