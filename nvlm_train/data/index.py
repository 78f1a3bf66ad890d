"""The index beside plain webdataset tars: where every sample lies, how large its pictures are, and what its bytes hash to.

`index.json` in the folder names the shards with size, SHA-256 and sample count; `SHARD.index.json` beside each shard holds its
samples. An index is data from outside: everything read from it is checked before it is used.
"""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from nvlm_train.errors import DataError, SampleRefused

FORMAT, VERSION = "nvlm_train shard index", 1
FOLDER_INDEX = "index.json"
_NO_IMAGES = np.zeros((0, 4), dtype=np.int64)


def command(folder: Path | str) -> str:
    """The command that makes an index, for messages."""
    return f"python -m data_prep index {folder}"


def shard_index_name(shard: str) -> str:
    return f"{shard}.index.json"


def check_key(key: str, where: str) -> None:
    """Refuse a key that could name a file outside a folder made from it. Raises DataError."""
    path = PurePosixPath(key)
    if not key or path.is_absolute() or ".." in path.parts or "\\" in key or any(ord(char) < 32 for char in key):
        raise DataError(f"{where}: the key {key!r} is absolute, climbs out of its folder, or holds control characters. Write the shard "
                        "again with plain relative keys")


@dataclass(frozen=True)
class ShardEntry:
    """One line of the folder's index. size in bytes; sha256 of the whole file, hex; samples, refused ones included."""

    name: str
    size: int
    sha256: str
    samples: int


@dataclass(frozen=True)
class ShardIndex:
    """Where the samples of one shard lie.

    keys:         one per sample, in shard order
    records:      int64 [samples, 2]: offset and size of the json member
    image_first:  int64 [samples + 1]: sample i has the images image_first[i]:image_first[i + 1]
    images:       int64 [images, 4]: offset, size, width, height (upright) of each picture; 0x0 if its header is broken
    sha256:       per sample, hex, of the json member followed by its pictures
    refused:      sample -> "reason: detail" of samples known to be unusable
    """

    keys: tuple[str, ...]
    records: np.ndarray
    image_first: np.ndarray
    images: np.ndarray
    sha256: tuple[str, ...]
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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")   # several ranks may write the same file
    try:
        temporary.write_text(json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_json(path: Path, folder: Path, what: str) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} has no {what} ({path.name}). Make it with: {command(folder)}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Make it again with: {command(folder)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} is not a {FORMAT}. Make it with: {command(folder)}")
    if content.get("version") != VERSION:
        raise DataError(f"{path} has version {content.get('version')}, this program reads {VERSION}. Make it again with: {command(folder)}")
    return content


def write_folder_index(folder: Path, entries: list[ShardEntry]) -> None:
    shards = [{"name": e.name, "size": e.size, "sha256": e.sha256, "samples": e.samples} for e in entries]
    write_json(folder / FOLDER_INDEX, {"format": FORMAT, "version": VERSION, "shards": shards})


def read_folder_index(folder: Path) -> list[ShardEntry]:
    """Shards of a folder, in index order. Raises DataError if the index is missing, damaged, or names files elsewhere."""
    if not folder.is_dir():
        raise DataError(f"no folder of shards at {folder}")
    content = _read_json(folder / FOLDER_INDEX, folder, "index")
    try:
        entries = [ShardEntry(str(s["name"]), int(s["size"]), str(s["sha256"]), int(s["samples"])) for s in content["shards"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / FOLDER_INDEX} is damaged ({error!r}). Make it again with: {command(folder)}") from error
    for entry in entries:
        if entry.name != PurePosixPath(entry.name).name or entry.name in ("", ".", "..") or entry.samples < 0:
            raise DataError(f"{folder / FOLDER_INDEX} names the shard {entry.name!r}; shards lie in the folder itself")
    if not entries:
        raise DataError(f"{folder / FOLDER_INDEX} lists no shard")
    return entries


def write_shard_index(folder: Path, entry: ShardEntry, index: ShardIndex) -> None:
    images = [index.images_of(i).tolist() for i in range(len(index.keys))]
    write_json(folder / shard_index_name(entry.name), {
        "format": FORMAT, "version": VERSION, "shard": entry.name, "size": entry.size, "sha256": entry.sha256, "keys": list(index.keys),
        "records": index.records.tolist(), "images": images, "samples_sha256": list(index.sha256),
        "refused": {str(sample): reason for sample, reason in index.refused.items()}})


def read_shard_index(folder: Path, entry: ShardEntry) -> ShardIndex:
    """Raises DataError if it is missing, damaged, of another shard, or points outside the shard."""
    path = folder / shard_index_name(entry.name)
    content = _read_json(path, folder, f"index of {entry.name}")
    if (content.get("size"), content.get("sha256")) != (entry.size, entry.sha256):
        raise DataError(f"{path} describes another version of {entry.name} than {FOLDER_INDEX}. Make both again with: {command(folder)}")
    try:
        per_sample = content["images"]
        images = np.array([image for images in per_sample for image in images], dtype=np.int64).reshape(-1, 4)
        index = ShardIndex(
            keys=tuple(content["keys"]), records=np.array(content["records"], dtype=np.int64).reshape(-1, 2),
            image_first=np.concatenate([[0], np.cumsum([len(images) for images in per_sample], dtype=np.int64)]),
            images=images if len(images) else _NO_IMAGES, sha256=tuple(content["samples_sha256"]),
            refused={int(sample): str(reason) for sample, reason in content["refused"].items()})
        lengths = {len(index.keys), len(index.records), len(per_sample), len(index.sha256), entry.samples}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error!r}). Make it again with: {command(folder)}") from error
    spans = np.concatenate([index.records, index.images[:, :2]])
    if len(lengths) != 1 or (spans < 0).any() or (spans.sum(axis=1) > entry.size).any() or (index.images[:, 2:] < 0).any():
        raise DataError(f"{path} is damaged: counts differ, or a sample lies outside the shard's {entry.size:,} bytes. "
                        f"Make it again with: {command(folder)}")
    for key in index.keys:
        check_key(key, str(path))
    return index
