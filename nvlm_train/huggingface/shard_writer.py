"""Writing a Hugging Face folder's safetensors, tensor by tensor: what is written is on the disk, not in memory.

Names, dtypes and shapes are known beforehand, so every file's header is written first and each tensor then goes to its place.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from nvlm_train.huggingface.shard_format import INDEX, NAMES


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def shards_of(tensors: Sequence[Planned], limit: int) -> list[list[Planned]]:
    """The tensors of each file, in order: as many as fit `limit` bytes, at least one."""
    shards: list[list[Planned]] = []
    room = 0
    for tensor in tensors:
        if tensor.size > room or not shards:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= tensor.size
    return shards


class ShardWriter:
    """Files `model-00001-of-0000N.safetensors` and their index in a folder; a single one is `model.safetensors`, without index.

    Use as a context; `write` every planned tensor, in any order. files: names of the files.
    """

    def __init__(self, folder: Path, tensors: Sequence[Planned], limit: int):
        shards = shards_of(tensors, limit)
        count = len(shards)
        self.files = [f"model-{n + 1:05}-of-{count:05}.safetensors" if count > 1 else "model.safetensors" for n in range(count)]
        self._planned = {tensor.name: tensor for tensor in tensors}
        if len(self._planned) < len(tensors):
            raise ValueError(f"{len(tensors)} tensors are planned under {len(self._planned)} names")
        self._folder, self._left = folder, set(self._planned)
        self._place: dict[str, tuple[str, int]] = {}
        self._open = {}
        for file, shard in zip(self.files, shards, strict=True):
            self._begin(file, shard)
        if count > 1:
            index = {"metadata": {"total_size": sum(tensor.size for tensor in tensors)},
                     "weight_map": {name: file for name, (file, _) in sorted(self._place.items())}}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _begin(self, file: str, shard: Sequence[Planned]) -> None:
        """Write a file's header. Wide dtypes lie first, so that every tensor is aligned to its own."""
        at, header = 0, {"__metadata__": {"format": "pt"}}
        for tensor in sorted(shard, key=lambda one: -one.dtype.itemsize):
            place = [at, at + tensor.size]
            header[tensor.name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
            at += tensor.size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        for tensor in shard:
            self._place[tensor.name] = (file, 8 + len(text) + header[tensor.name]["data_offsets"][0])
        with (self._folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + at)

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor in its place, once. Raises ValueError for another dtype or shape than planned."""
        planned = self._planned[name]
        if (tensor.dtype, tuple(tensor.shape)) != (planned.dtype, planned.shape) or name not in self._left:
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} for {planned}, or for the second time")
        file, at = self._place[name]
        if file not in self._open:
            self.close_file()       # tensors come file by file, so one is open at a time
            self._open[file] = (self._folder / file).open("r+b")
        out = self._open[file]
        out.seek(at)
        out.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        self._left.discard(name)

    def close_file(self) -> None:
        """Close the file being written, so that others may read it."""
        for file in self._open.values():
            file.close()
        self._open = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *_) -> None:
        self.close_file()
        if kind is None and self._left:
            raise ValueError(f"{len(self._left)} planned tensors were never written, such as {min(self._left)}")
