"""The index beside plain webdataset tars: where every sample lies, how large its pictures are, and what its bytes hash to.

`index.json` in the folder names the shards with size, SHA-256 and sample count; `SHARD.index.safetensors` beside each shard holds
its samples as arrays: a step of a shuffled order touches nearly all shards of a folder, and a million samples of JSON take seconds to
parse. An index is data from outside: everything read from it is checked before it is used.
"""

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from nvlm_train.errors import DataError, SampleRefused

FORMAT, VERSION = "nvlm_train shard index", 2
FOLDER_INDEX = "index.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNSAFE = re.compile(r"^/|^$|(^|/)\.\.(/|$)|[\\\x00-\x09\x0b-\x1f]", re.MULTILINE)    # what `check_key` refuses, over many lines at once


def command(folder: Path | str) -> str:
    """The command that makes an index, for messages."""
    if "://" in str(folder):
        return f"python -m data_prep index FOLDER, where the shards were made, and upload FOLDER to {folder}"
    return f"python -m data_prep index {folder}"


def shard_index_name(shard: str) -> str:
    return f"{shard}.index.safetensors"


def check_key(key: str, where: str) -> None:
    """Refuse a key that could name a file outside a folder made from it. Raises DataError."""
    path = PurePosixPath(key)
    strange = "\\" in key or any(ord(char) < 32 or "\ud800" <= char <= "\udfff" for char in key)   # half pairs: bytes that are not UTF-8
    if not key or path.is_absolute() or ".." in path.parts or strange:
        raise DataError(f"{where}: the key {key!r} is absolute, climbs out of its folder, or holds control characters or bytes that are "
                        "not UTF-8. Write the shard again with plain relative keys")


def check_shard_name(name: str, folder: Path | str) -> None:
    """Refuse a shard name that leaves its folder, or that other readers of shards would run. Raises DataError."""
    if name != PurePosixPath(name).name or name in ("", ".", "..") or name.lower().startswith("pipe:"):
        raise DataError(f"{folder} has the shard {name!r}; shards are files of the folder itself, and none is a command (pipe:)")


@dataclass(frozen=True)
class ShardEntry:
    """One line of the folder's index. size in bytes; sha256 of the whole file, hex; samples, refused ones included."""

    name: str
    size: int
    sha256: str
    samples: int


class Strings(Sequence[str]):
    """Texts as two arrays: UTF-8 bytes end to end, and where each ends. A twentieth of the memory of as many Python strings."""

    def __init__(self, utf8: np.ndarray, ends: np.ndarray):
        """utf8: uint8 [bytes]; ends: int64 [texts]. Raises ValueError if an end lies outside, or before the one before it."""
        if len(ends) and (ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] != len(utf8)) or not len(ends) and len(utf8):
            raise ValueError(f"the ends of {len(ends)} texts do not cut {len(utf8)} bytes")
        self.utf8, self.ends = utf8, ends

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Strings":
        encoded = [text.encode() for text in texts]
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), np.cumsum([len(text) for text in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: int) -> str:
        place = range(len(self))[place]
        start = self.ends[place - 1] if place else 0
        return self.utf8[start:self.ends[place]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        start, whole = 0, self.utf8.tobytes()
        for end in self.ends.tolist():
            yield whole[start:end].decode()
            start = end


@dataclass(frozen=True)
class ShardIndex:
    """Where the samples of one shard lie.

    keys:         one per sample, in shard order
    records:      int64 [samples, 2]: offset and size of the json member
    image_first:  int64 [samples + 1]: sample i has the images image_first[i]:image_first[i + 1]
    images:       int64 [images, 4]: offset, size, width, height (upright) of each picture; 0x0 if its header is broken
    sha256:       uint8 [samples, 32]: of the json member followed by its pictures
    refused:      sample -> "reason: detail" of samples known to be unusable
    """

    keys: Strings
    records: np.ndarray
    image_first: np.ndarray
    images: np.ndarray
    sha256: np.ndarray
    refused: Mapping[int, str]

    def images_of(self, sample: int) -> np.ndarray:
        """int64 [images of the sample, 4]."""
        return self.images[self.image_first[sample]:self.image_first[sample + 1]]


def refusal(text: str) -> SampleRefused:
    """Back from the "reason: detail" that an index or a token count file stores."""
    reason, _, detail = text.partition(": ")
    return SampleRefused(reason, detail)


def write_json(path: Path, content: dict) -> None:
    """Write by rename, so that a reader never sees half a file. The same bytes for the same content."""
    with replacing(path) as file:
        file.write((json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n").encode("utf-8"))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is whole, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")   # several ranks may write the same file
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_header(path: str, content: Mapping, folder: str) -> None:
    if content.get("format") != FORMAT:
        raise DataError(f"{path} is not a {FORMAT}. Make it with: {command(folder)}")
    if content.get("version") != VERSION:
        raise DataError(f"{path} has version {content.get('version')}, this program reads {VERSION}. Make it again with: {command(folder)}")


def write_folder_index(folder: Path, entries: list[ShardEntry]) -> None:
    shards = [{"name": e.name, "size": e.size, "sha256": e.sha256, "samples": e.samples} for e in entries]
    write_json(folder / FOLDER_INDEX, {"format": FORMAT, "version": VERSION, "shards": shards})


def read_folder_index(folder: Path, shown: str = "") -> list[ShardEntry]:
    """Shards of a folder, in index order. shown: where the folder is for messages, if `folder` is a copy of its indexes.

    Raises DataError if the index is missing, damaged, or names files elsewhere.
    """
    shown = shown or str(folder)
    if not folder.is_dir():
        raise DataError(f"no folder of shards at {shown}")
    path = f"{shown}/{FOLDER_INDEX}"
    again = f"Make it again with: {command(shown)}"
    try:
        content = json.loads((folder / FOLDER_INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{shown} has no index ({FOLDER_INDEX}). Make it with: {command(shown)}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. {again}") from error
    _check_header(path, content if isinstance(content, dict) else {}, shown)
    try:
        entries = [ShardEntry(str(s["name"]), int(s["size"]), str(s["sha256"]), int(s["samples"])) for s in content["shards"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error!r}). {again}") from error
    for entry in entries:
        check_shard_name(entry.name, shown)
        if entry.samples < 0:
            raise DataError(f"{path} gives {entry.name} {entry.samples:,} samples. {again}")
        if not _SHA256.fullmatch(entry.sha256):     # it also names the shard's copy in a cache
            raise DataError(f"{path} gives {entry.name} the SHA-256 {entry.sha256[:80]!r}, which is none. {again}")
    if not entries:
        raise DataError(f"{path} lists no shard")
    return entries


def write_shard_index(folder: Path, entry: ShardEntry, index: ShardIndex) -> None:
    """Write by rename, the same bytes for the same index."""
    reasons = Strings.of(list(index.refused.values()))
    arrays = {"keys": index.keys.utf8, "key_ends": index.keys.ends, "records": index.records, "image_first": index.image_first,
              "images": index.images, "sha256": index.sha256, "refused": np.array(list(index.refused), dtype=np.int64),
              "reasons": reasons.utf8, "reason_ends": reasons.ends}
    about = {"format": FORMAT, "version": VERSION, "shard": entry.name, "size": entry.size, "sha256": entry.sha256}
    # One entry of metadata: the order of several is not always the same.
    with replacing(folder / shard_index_name(entry.name)) as file:
        file.write(save(arrays, {"about": json.dumps(about, sort_keys=True)}))


def read_shard_index(folder: Path, entry: ShardEntry, shown: str = "") -> ShardIndex:
    """`folder` and `shown` as for `read_folder_index`. Raises DataError if it is missing, damaged, of another shard, or points
    outside the shard."""
    shown = shown or str(folder)
    path = f"{shown}/{shard_index_name(entry.name)}"
    again = f"Make it again with: {command(shown)}"
    if not (folder / shard_index_name(entry.name)).is_file():
        raise DataError(f"{shown} has no index of {entry.name} ({shard_index_name(entry.name)}). Make it with: {command(shown)}")
    try:
        with safe_open(folder / shard_index_name(entry.name), framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        _check_header(path, about, shown)
        if (about["size"], about["sha256"]) != (entry.size, entry.sha256):
            raise DataError(f"{path} describes another version of {entry.name} than {FOLDER_INDEX}. Make both again with: {command(folder)}")
        index = ShardIndex(Strings(arrays["keys"], arrays["key_ends"]), arrays["records"], arrays["image_first"], arrays["images"],
                           arrays["sha256"],
                           dict(zip(arrays["refused"].tolist(), Strings(arrays["reasons"], arrays["reason_ends"]), strict=True)))
        problem = _problem(index, entry)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:   # UnicodeDecodeError is a ValueError
        raise DataError(f"{path} is damaged ({error!r}). {again}") from error
    if problem:
        raise DataError(f"{path} is damaged: {problem}. {again}")
    return index


def _problem(index: ShardIndex, entry: ShardEntry) -> str | None:
    """What makes an index unusable for its shard, if anything does. Raises ValueError for arrays of other shapes."""
    samples = len(index.keys)
    shapes = {"records": (samples, 2), "image_first": (samples + 1,), "images": (len(index.images), 4), "sha256": (samples, 32)}
    for name, shape in shapes.items():
        if getattr(index, name).shape != shape:
            return f"{name} has the shape {list(getattr(index, name).shape)}, {samples:,} keys need {list(shape)}"
    if samples != entry.samples:
        return f"it holds {samples:,} samples, {FOLDER_INDEX} says {entry.samples:,}"
    first = index.image_first
    if first[0] != 0 or (np.diff(first) < 0).any() or first[-1] != len(index.images):
        return f"its samples do not share out {len(index.images):,} images"
    spans = np.concatenate([index.records, index.images[:, :2]])
    if (spans < 0).any() or (spans.sum(axis=1) > entry.size).any() or (index.images[:, 2:] < 0).any():
        return f"a sample lies outside the shard's {entry.size:,} bytes"
    lines = "\n".join(index.keys)
    if samples and (_UNSAFE.search(lines) or lines.count("\n") != samples - 1):
        for key in index.keys:
            check_key(key, entry.name)
    return None
