"""The file of a shard's cached features: `SHARD.features-KEY.safetensors`, beside the shard's index.

    tile_first   int64 [samples + 1]: sample i has the tiles tile_first[i]:tile_first[i + 1], none if it was refused or is text
    grids        int64 [images, 2]: columns and rows of every image of the shard's index, 0 x 0 where its sample has no features
    sha256       uint8 [samples, 32]: of the sample's json member followed by its features
    features     [tiles, L, C] in the compute dtype; last, so that it can be written as it comes

A shard of features is larger than memory: they are written sample by sample and read by positioned reads. What is read from such
a file is checked before it is used.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from nvlm_train.data.index import ShardEntry, replacing
from nvlm_train.errors import DataError

FORMAT, VERSION = "nvlm_train features", 1
COMMAND = "nvlm data cache-features recipe=… stage=…"
_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
# What bytes of any kind may raise.
_DAMAGE = (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, IndexError)


def feature_file_name(shard: str, key: str) -> str:
    """Name of a shard's features under a key (`features.FeatureKey.name`); `*` as the key gives the pattern of all."""
    return f"{shard}.features-{key}.safetensors"


def remedy(path: Path) -> str:
    """What to do about an unusable file, for messages."""
    return f"Delete {path} and make it again with: {COMMAND} (or train without it: data.features=off)"


class FeatureWriter:
    """Fills one file, sample by sample in shard order. Made by `writing`."""

    def __init__(self, file: BinaryIO, about: Mapping, samples: int, images: int, tile_shape: Sequence[int], dtype: torch.dtype,
                 most_tiles: int):
        self._file, self._about, self._tile_shape, self._dtype = file, about, list(tile_shape), dtype
        self._tiles = np.zeros(samples + 1, dtype=np.int64)
        self._grids = np.zeros((images, 2), dtype=np.int64)
        self._sha256 = np.zeros((samples, 32), dtype=np.uint8)
        # Fewer tiles than planned may come (a broken picture), which takes no more digits.
        self._reserved = -(-len(self._header(most_tiles)) // 8) * 8
        file.seek(8 + self._reserved + sum(array.nbytes for array in self._arrays().values()))

    def add(self, place: int, images: slice, grids: Sequence[tuple[int, int]], record: bytes, features: torch.Tensor) -> None:
        """The features of the next sample that has any: its place in the shard, its images in the index, its json member."""
        content = features.contiguous().view(torch.uint8).numpy().data.cast("B")
        self._file.write(content)
        self._tiles[place + 1] = len(features)
        self._grids[images] = grids
        self._sha256[place] = np.frombuffer(_digest(record, content), dtype=np.uint8)

    def finish(self) -> None:
        """Write what stands before the features, and wait until all is on the disk."""
        header = self._header(int(self._tiles.sum())).ljust(self._reserved)
        self._file.seek(0)
        self._file.write(len(header).to_bytes(8, "little") + header)
        for array in self._arrays().values():
            self._file.write(array.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"tile_first": np.cumsum(self._tiles), "grids": self._grids, "sha256": self._sha256}

    def _header(self, tiles: int) -> bytes:
        """The safetensors header of a file with this many tiles."""
        tensors, at = {"__metadata__": {"about": json.dumps(self._about, sort_keys=True)}}, 0
        for name, array in self._arrays().items():
            kind = {"int64": "I64", "uint8": "U8"}[array.dtype.name]
            tensors[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
            at += array.nbytes
        size = tiles * int(np.prod(self._tile_shape)) * self._dtype.itemsize
        tensors["features"] = {"dtype": _NAMES[self._dtype], "shape": [tiles, *self._tile_shape], "data_offsets": [at, at + size]}
        return json.dumps(tensors, separators=(",", ":")).encode()


@contextmanager
def writing(path: Path, entry: ShardEntry, parts: Mapping[str, str], images: int, tile_shape: Sequence[int], dtype: torch.dtype,
            most_tiles: int) -> Iterator[FeatureWriter]:
    """A writer of the features of `entry`, published at `path` by one rename once the block is left without an error.

    parts: what the features depend on. images: of the shard's index. tile_shape: [L, C]. most_tiles: no more will come.
    """
    about = {"format": FORMAT, "version": VERSION, "shard": entry.name, "sha256": entry.sha256, "parts": dict(parts)}
    with replacing(path) as file:
        writer = FeatureWriter(file, about, entry.samples, images, tile_shape, dtype, most_tiles)
        yield writer
        writer.finish()


def read_about(path: Path) -> Mapping:
    """What a file says of itself: shard, sha256, parts. Raises DataError if it is damaged or of another format."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
        known = (about.get("format"), about.get("version")) == (FORMAT, VERSION)
        about = {"shard": str(about["shard"]), "sha256": str(about["sha256"]), "parts": dict(about["parts"])} if known else {}
    except _DAMAGE as error:
        raise DataError(f"{path} is damaged ({error!r}). {remedy(path)}") from error
    if not about:
        raise DataError(f"{path} is not of the format {FORMAT!r}, version {VERSION}. {remedy(path)}")
    return about


class FeatureFile:
    """An opened file of features, its small arrays in memory. Safe in several threads."""

    def __init__(self, path: Path, entry: ShardEntry, images: int, tile_shape: Sequence[int], dtype: torch.dtype):
        """Raises DataError if it is missing, damaged, of another version of the shard, or of other shapes."""
        self.path = path
        about = read_about(path)
        if about["sha256"] != entry.sha256:
            raise DataError(f"{path} holds features of another version of {entry.name}. {remedy(path)}")
        try:
            with safe_open(path, framework="numpy") as file:
                self.tile_first, self.grids, self._sha256 = (file.get_tensor(name) for name in ("tile_first", "grids", "sha256"))
                kind = file.get_slice("features")
                found = kind.get_dtype(), kind.get_shape()
            with open(path, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                self._start = 8 + size + json.loads(file.read(size))["features"]["data_offsets"][0]
            tiles = int(self.tile_first[-1])
            shapes = self.tile_first.shape, self.grids.shape, self._sha256.shape
            sound = shapes == ((entry.samples + 1,), (images, 2), (entry.samples, 32))
            sound &= self.tile_first[0] == 0 and not (np.diff(self.tile_first) < 0).any()
        except _DAMAGE as error:
            raise DataError(f"{path} is damaged ({error!r}). {remedy(path)}") from error
        if not sound or found != (_NAMES[dtype], [tiles, *tile_shape]):
            raise DataError(f"{path} is damaged: it holds {found[0]} {found[1]} for {tiles:,} tiles of {entry.samples:,} "
                            f"samples, wanted is {_NAMES[dtype]} {[tiles, *tile_shape]}. {remedy(path)}")

    def tiles(self, place: int) -> int:
        """How many tiles of the sample at this place of the shard have features: all of them or none."""
        return int(self.tile_first[place + 1] - self.tile_first[place])

    def read_into(self, place: int, out: torch.Tensor) -> None:
        """Fill `out`, contiguous [tiles of the sample, L, C] in the file's dtype. Raises DataError if the file ends too early."""
        target = out.view(torch.uint8).numpy().data.cast("B")
        offset, done = self._start + int(self.tile_first[place]) * (len(target) // max(1, len(out))), 0
        try:
            with open(self.path, "rb", buffering=0) as file:
                while done < len(target) and (read := os.preadv(file.fileno(), [target[done:]], offset + done)):
                    done += read
        except OSError as error:
            raise DataError(f"{self.path} cannot be read at byte {offset + done:,}: {error.strerror}") from error
        if done != len(target):
            raise DataError(f"{self.path} ends at byte {offset + done:,}, {len(target) - done:,} bytes too early. "
                            f"{remedy(self.path)}")

    def fits(self, place: int, record: bytes, features: torch.Tensor) -> bool:
        """Whether a sample's json member and features have the hash that was taken when they were cached."""
        return _digest(record, features.view(torch.uint8).numpy().data.cast("B")) == self._sha256[place].tobytes()


def _digest(record: bytes, features: memoryview) -> bytes:
    digest = hashlib.sha256(record)
    digest.update(features)
    return digest.digest()
