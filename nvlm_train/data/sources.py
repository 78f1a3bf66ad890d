"""The sources of a blend, opened: shards, their text token counts, and so the cost of every sample without decoding it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from nvlm_train.config import schema
from nvlm_train.contracts import Sample
from nvlm_train.data.counts import TextCounts
from nvlm_train.data.encode import Encoder, Plan
from nvlm_train.data.features import CachedFeatures, FeatureKey
from nvlm_train.data.permutation import key_of, permuted_all
from nvlm_train.data.shard_cache import ShardCache
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import ConfigError, DataError, SampleRefused

_MEASURED = 2000    # samples: the mean of lengths that vary as much as they are long is known to 2 %


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

    def mean_tokens(self) -> float:
        """Mean length of a sample in tokens, tiles included, over at most `_MEASURED` samples. Raises DataError if none can be used."""
        count = min(len(self), _MEASURED)
        tokens = []
        for sample in permuted_all(np.arange(count), len(self), key_of("length", self.name)).tolist():
            with suppress(SampleRefused):
                tokens.append(self.plan(sample).tokens)
        if not tokens:
            raise DataError(f"none of {count:,} samples of {self.name} ({self.folder.name}) can be used, so data.weigh_by=tokens knows no "
                            "length for it: see why with python -m data_prep check, or leave the source out")
        return float(np.mean(tokens))

    def read(self, sample: int) -> Sample:
        """The sample's bytes, verified. Raises SampleRefused or DataError as `ShardFolder.read`."""
        return self.folder.read(sample)

    def start(self, sample: int) -> Callable[[], Sample]:
        """Begin to read; the result gives what `read` gives."""
        return self.folder.start(sample)


def sample_weights(data: schema.Data, sources: Sequence[Source]) -> dict[str, float]:
    """The blend's weights as shares of samples, by source. With data.weigh_by=tokens they are divided by a sample's mean length,
    taken over a fixed choice of `_MEASURED` samples: the same on every rank and in every run."""
    weights = {source.name: data.blend[source.name].weight for source in sources}
    if data.weigh_by == "samples":
        return weights
    return {source.name: weights[source.name] / source.mean_tokens() for source in sources}


def cache_of(data: schema.Data) -> ShardCache:
    """Where remote folders keep copies, as `data.cache_dir` and `data.cache_gb` say."""
    return ShardCache(Path(data.cache_dir) if data.cache_dir else None, int(data.cache_gb * 1e9))


def open_sources(blend: Mapping[str, schema.Source], encoder: Encoder, setting: str = "data.blend", *,
                 cache: ShardCache | None = None, features: FeatureKey | None = None) -> list[Source]:
    """Every source of a blend, in its order. `setting` names the blend in messages. cache: where remote folders keep copies.

    features: of the cache that stands in for pictures. Raises ConfigError, DataError.
    """
    cache = cache or cache_of(encoder.data)
    without = [name for name, source in blend.items() if not source.path]
    if not blend or without:
        what = f"no path for {', '.join(without)}" if without else "it is empty"
        raise ConfigError(f"{setting}: {what}. Name a folder of indexed shards, for example {setting}.mine.path=FOLDER")
    return [Source(name, ShardFolder(source.path, name, cache), encoder, features) for name, source in blend.items()]
