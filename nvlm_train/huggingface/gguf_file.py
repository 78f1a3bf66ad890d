"""GGUF, the file format of llama.cpp: numbers and texts by key, then tensors, most of them quantised (ggml's docs/gguf.md).

The `gguf` package reads such files too, but believes every count in them: a damaged one keeps it busy for ever. Here nothing is
read past the end of the file. The package does what only it can: it turns blocks of quantised numbers into plain ones.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvlm_train.errors import CheckpointError

INSTALL = "pip install 'nvlm-train[gguf]'"
VERSIONS = (2, 3)       # 1 had shorter counts, and files of it have not been made since 2023
MOST_DIMENSIONS = 4     # of a ggml tensor

_SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Stored:
    """A tensor as the file holds it. shape: slowest dimension first, as torch has it. kind: ggml's number of its encoding."""

    shape: tuple[int, ...]
    kind: int
    start: int      # byte in the file
    size: int       # bytes


class GgufFile:
    """A file, mapped into memory. fields: key -> number, text, or list of them. stored: tensors by their names in the file."""

    def __init__(self, path: Path):
        """Raises CheckpointError: no GGUF, damaged, truncated, or the `gguf` package is missing."""
        try:
            from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        except ImportError as error:
            raise CheckpointError(f"{path} is a GGUF file; reading it takes the package gguf: {INSTALL}") from error
        self.path = path
        self._kinds, self._sizes = GGMLQuantizationType, GGML_QUANT_SIZES
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise CheckpointError(f"{path} is no GGUF file: it does not begin with the four letters GGUF")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 4
        version = self._number("<u4")
        if version not in VERSIONS:
            raise CheckpointError(f"{path} is of GGUF version {version}; {' and '.join(map(str, VERSIONS))} are read")
        tensors, fields = self._number("<u8"), self._number("<u8")
        self.fields: dict[str, Any] = {}
        for _ in range(fields):
            self._put(self.fields, self._text(), self._value(self._number("<u4")))
        found: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensors):
            self._put(found, self._text(), (self._shape(), self._number("<u4"), self._number("<u8")))
        first = -(-self._at // self._alignment()) * self._alignment()
        self.stored = {name: self._place(name, shape, kind, first + offset) for name, (shape, kind, offset) in found.items()}

    def tensor(self, name: str) -> np.ndarray:
        """One tensor as plain float32. Raises CheckpointError for an encoding that the `gguf` package cannot undo."""
        from gguf import dequantize

        stored, kind = self.stored[name], self._kinds(self.stored[name].kind)
        rows = np.frombuffer(self._bytes, np.uint8, stored.size, stored.start).reshape(*stored.shape[:-1], -1)
        try:
            return dequantize(rows, kind).astype(np.float32).reshape(stored.shape)
        except NotImplementedError as error:
            raise CheckpointError(f"{self.path}: {name} is encoded as {kind.name}, which the gguf package cannot undo; take a "
                                  "file of another quantisation, such as Q8_0") from error

    # -- the file, byte by byte ---------------------------------------------------------------------------------------------

    def _take(self, size: int) -> int:
        """Where the next `size` bytes begin, once it is certain that they are there."""
        at = self._at
        if size > len(self._bytes) - at:
            raise CheckpointError(f"{self.path} ends at byte {len(self._bytes):,}, but {size:,} bytes are announced at {at:,}: it is "
                                  "truncated or damaged; fetch it again")
        self._at += size
        return at

    def _number(self, kind: str):
        return self._numbers(kind, 1)[0].item()

    def _numbers(self, kind: str, count: int) -> np.ndarray:
        start = self._take(count * np.dtype(kind).itemsize)
        return np.frombuffer(self._bytes, kind, count, start)

    def _text(self) -> str:
        size = struct.unpack_from("<Q", self._bytes, self._take(8))[0]
        start = self._take(size)
        try:
            return self._bytes[start:start + size].decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: the text at byte {start:,} is no UTF-8: the file is damaged") from error

    def _value(self, kind: int):
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            kind, count = self._number("<u4"), self._number("<u8")
            if kind == _STRING:
                return [self._text() for _ in range(count)]
            return self._numbers(self._scalar(kind), count).tolist()
        return self._number(self._scalar(kind))

    def _scalar(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.path}: byte {self._at:,} announces a value of kind {kind}, which GGUF does not have: the "
                                  "file is damaged")
        return _SCALARS[kind]

    def _shape(self) -> tuple[int, ...]:
        dimensions = self._number("<u4")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise CheckpointError(f"{self.path}: byte {self._at:,} announces a tensor of {dimensions} dimensions, 1 to "
                                  f"{MOST_DIMENSIONS} are possible: the file is damaged")
        shape = tuple(reversed(self._numbers("<u8", dimensions).tolist()))
        if not all(shape):
            raise CheckpointError(f"{self.path}: byte {self._at:,} announces a tensor of shape {shape}: the file is damaged")
        return shape

    def _put(self, into: dict, key: str, value) -> None:
        if key in into:
            raise CheckpointError(f"{self.path} has {key} twice")
        into[key] = value

    def _alignment(self) -> int:
        alignment = self.fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise CheckpointError(f"{self.path}: general.alignment={alignment!r} must be a number of bytes")
        return alignment

    def _place(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> Stored:
        try:
            block, size = self._sizes[self._kinds(kind)]
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{self.path}: {name} has the encoding {kind}, which this version of the gguf package does not "
                                  f"know: {INSTALL} --upgrade") from error
        if shape[-1] % block:
            raise CheckpointError(f"{self.path}: {name} {shape} is encoded in blocks of {block}, which must divide {shape[-1]}")
        size *= math.prod(shape) // block
        if start + size > len(self._bytes):
            raise CheckpointError(f"{self.path} ends at byte {len(self._bytes):,}, but {name} {shape} reaches to byte "
                                  f"{start + size:,}: it is truncated or damaged; fetch it again")
        return Stored(shape, kind, start, size)
