"""What a frozen vision encoder made of the pictures, read from beside the shards: the key, reading, what is lacking.

A file belongs to one key: a hash of everything that the features depend on, weights, precision, and how pictures become tiles. So
a cache of something else is never opened, only told about. Text, tags and positions are made as ever; no picture is read.
"""

import glob
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch

from nvlm_train.config.schema import NOT_OF_WEIGHTS
from nvlm_train.contracts import Sample
from nvlm_train.data import tiling
from nvlm_train.data.encode import Encoder
from nvlm_train.data.feature_files import COMMAND, FeatureFile, feature_file_name, read_about, remedy
from nvlm_train.data.records import read_record
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import DataError

_SHOWN = 40     # characters of a part that a message shows


@dataclass(frozen=True)
class FeatureKey:
    """What features are of. parts: everything they depend on, by name; tokens, width: L and C of a tile; dtype: theirs."""

    parts: Mapping[str, str]
    tokens: int
    width: int
    dtype: torch.dtype

    @cached_property
    def name(self) -> str:
        """16 hex digits: part of the files' names."""
        return hashlib.sha256(json.dumps(dict(self.parts), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def tile_bytes(self) -> int:
        return self.tokens * self.width * self.dtype.itemsize

    def differences(self, parts: Mapping[str, str]) -> str:
        """In which parts other features differ, both values given, in words."""
        names = [name for name in {**self.parts, **parts} if self.parts.get(name) != parts.get(name)]
        return "; ".join(f"{name} is {_short(parts.get(name))} there and {_short(self.parts.get(name))} here" for name in names)


def _short(text: str | None) -> str:
    text = text or "nothing"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def feature_key(encoder: Encoder, weights: str, dtype: torch.dtype) -> FeatureKey:
    """The key for a model and a stage's data settings. weights: `Engine.encoder_fingerprint`.

    A grid depends on what else a sample holds, since a long one gets fewer tiles: hence text, and the tokens that each grid adds.
    """
    data, geometry = encoder.data, encoder.geometry
    vision = {name: value for name, value in asdict(encoder.model.vision).items() if name not in NOT_OF_WEIGHTS}
    parts = {
        "weights": weights, "precision": str(dtype).removeprefix("torch."),
        "encoder": " ".join(f"{name}={value}" for name, value in vision.items()),
        "tiling": f"version {tiling.VERSION}", "data.max_tiles": str(data.max_tiles), "data.thumbnail": str(data.thumbnail),
        "data.pack_tiles": str(data.pack_tiles), "tokens of a sample": str(encoder.max_tokens), "text": encoder.fingerprint,
        "tokens of a picture": " ".join(f"{grid[0]}x{grid[1]}:{tokens}" for grid, tokens in encoder.picture_tokens().items()),
    }
    return FeatureKey(parts, geometry.patches, encoder.model.vision.hidden, dtype)


class CachedFeatures:
    """The features of one folder of shards under one key. Safe in several threads."""

    def __init__(self, folder: ShardFolder, key: FeatureKey):
        self.folder, self.key = folder, key
        self._files: dict[int, FeatureFile] = {}
        self._lock = threading.Lock()

    def holds(self, sample: int) -> bool:
        """Whether the sample's pictures were encoded; False if it was refused then. Raises DataError for an unusable file."""
        shard, place = self.folder.locate(sample)
        return self._file(shard).tiles(place) > 0

    def read(self, sample: int, grids: Sequence[tuple[int, int]], out: torch.Tensor) -> Sample:
        """Fill `out`, [tiles, L, C], and return the sample without its pictures, both verified.

        grids: as planned. Raises SampleRefused("changed_bytes") where `ShardFolder.read` would, DataError if the features are
        damaged or of other grids.
        """
        shard, place = self.folder.locate(sample)
        file, index = self._file(shard), self.folder.index(shard)
        cached = [tuple(grid) for grid in file.grids[index.image_first[place]:index.image_first[place + 1]].tolist()]
        if cached != list(grids) or file.tiles(place) != len(out):
            raise DataError(f"{file.path} holds {file.tiles(place)} tiles in the grids {cached} for {self.folder.where(sample)}; "
                            f"planned are {len(out)} in {list(grids)}. {remedy(file.path)}")
        file.read_into(place, out)
        record = self.folder.read_record(sample)
        if not file.fits(place, record, out):
            self.folder.read(sample)    # refuses if it is the shard that changed
            raise DataError(f"{file.path}: the features of {self.folder.where(sample)} are damaged (SHA-256 differs). "
                            f"{remedy(file.path)}")
        content = read_record(record)
        return Sample(index.keys[place], self.folder.source, (), content.turns, content.meta)

    def _file(self, shard: int) -> FeatureFile:
        with self._lock:
            found = self._files.get(shard)
        if found is None:   # outside the lock: opening may stall; two threads may do it at once and get the same content
            entry, index = self.folder.entries[shard], self.folder.index(shard)
            path = self.folder.path / feature_file_name(entry.name, self.key.name)
            found = FeatureFile(path, entry, len(index.images), (self.key.tokens, self.key.width), self.key.dtype)
            with self._lock:
                self._files[shard] = found
        return found


def has_pictures(folder: ShardFolder, shard: int) -> bool:
    return len(folder.index(shard).images) > 0


def is_cached(folder: ShardFolder, shard: int, key: FeatureKey) -> bool:
    """Whether a shard's features are there: complete, under this key, of this version of the shard. Reads no features."""
    entry = folder.entries[shard]
    path = folder.path / feature_file_name(entry.name, key.name)
    return path.is_file() and read_about(path)["sha256"] == entry.sha256


def any_cached(folder: ShardFolder) -> bool:
    """Whether features of any key lie beside a folder's shards."""
    return next(folder.path.glob(feature_file_name("*", "*")), None) is not None


def lacking(folder: ShardFolder, key: FeatureKey) -> str | None:
    """Why a folder's features cannot be used, in words; None if every shard with pictures has them.

    Raises DataError for a damaged file.
    """
    missing = [shard for shard in range(len(folder.entries)) if not is_cached(folder, shard, key) and has_pictures(folder, shard)]
    if not missing:
        return None
    name = folder.entries[missing[0]].name
    text = f"{folder.source} lacks them for {len(missing):,} of {len(folder.entries):,} shards, the first {name}"
    others = sorted(folder.path.glob(feature_file_name(glob.escape(name), "*")))
    if others:
        about = read_about(others[-1])
        differs = key.differences(about["parts"]) or "the shard itself has changed since"
        return f"{text}; {others[-1].name} is of something else: {differs}"
    return f"{text} ({COMMAND} makes them)"
