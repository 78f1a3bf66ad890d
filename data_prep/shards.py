"""Writes samples into plain webdataset tars, and indexes tars written by anyone.

Layout of a sample: `KEY.json` with turns and the names of its pictures, then `KEY.0.jpg`, `KEY.1.png`, ...
"""

import argparse
import hashlib
import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from data_prep.tars import key_and_suffix, tar_members
from nvlm_train.contracts import Sample
from nvlm_train.data.images import image_extension, image_size
from nvlm_train.data.index import (
    FOLDER_INDEX,
    ShardEntry,
    ShardIndex,
    Strings,
    check_key,
    read_shard_index,
    write_folder_index,
    write_shard_index,
)
from nvlm_train.data.records import read_record, write_record
from nvlm_train.data.shards import ShardFolder, file_sha256
from nvlm_train.errors import DataError, SampleRefused

LONGEST_KEY = 80    # of the 100 bytes that every tar has for a name, the rest for ".123.jpeg"


# Writing

def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)   # owner 0, time 0, mode 0644: nothing in it depends on who writes, or when
    member.size = len(data)
    try:
        tar.addfile(member, io.BytesIO(data))
    except ValueError as error:
        raise DataError(f"{name!r} cannot be a tar member: {error}. Use a shorter key") from error


def check_new_key(key: str) -> None:
    """Refuse what cannot name a sample of a shard: DataError."""
    check_key(key, "write_shards")
    if "." in Path(key).name:
        raise DataError(f"the key {key!r} has a dot in its last part; webdataset would cut it there")
    if len(key.encode()) > LONGEST_KEY:
        raise DataError(f"the key {key[:40]!r}… has {len(key.encode())} bytes, at most {LONGEST_KEY} fit a tar's names")


def write_shard(path: Path, samples: Iterable[Sample]) -> None:
    """Write one tar by rename, the same bytes for the same samples. Raises DataError: a key cannot be one; SampleRefused: no picture."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                check_new_key(sample.key)
                names = [f"{sample.key}.{i}.{image_extension(image)}" for i, image in enumerate(sample.images)]
                _add(tar, f"{sample.key}.json", write_record(sample.turns, [Path(name).name for name in names], sample.meta))
                for name, image in zip(names, sample.images, strict=True):
                    _add(tar, name, image)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_shards(folder: Path | str, samples: Iterable[Sample], samples_per_shard: int = 1000) -> dict:
    """Write samples, in the given order, into `folder`/shard-000000.tar ... and index them. Returns the manifest of `index_folder`.

    The same samples give the same bytes. Raises DataError if the folder already holds shards, a key cannot be one, or there is no
    sample; SampleRefused if an image is not a picture (check samples first).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.tar")):
        raise DataError(f"{folder} already holds shards: write into a new folder, or remove them first")
    stream = iter(samples)
    for number, first in enumerate(stream):
        batch = [first, *islice(stream, samples_per_shard - 1)]
        write_shard(folder / f"shard-{number:06d}.tar", batch)
    return index_folder(folder)


# Indexing

def _size_or_zero(image: bytes) -> tuple[int, int]:
    """(width, height); 0x0 if the header is broken. Raises SampleRefused("image_too_large")."""
    try:
        return image_size(image)
    except SampleRefused as refusal:
        if refusal.reason != "broken_image":
            raise
        return 0, 0


def index_shard(path: Path) -> tuple[ShardEntry, ShardIndex]:
    """Index one tar. Raises DataError for one that is damaged or unsafe."""
    groups: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in tar_members(path):
        key, _ = key_and_suffix(member.name)
        groups.setdefault(key, {})[member.name] = member
    records, images, first, digests, refused = [], [], [0], [], {}
    with open(path, "rb") as file:
        def read(member: tarfile.TarInfo) -> bytes:
            file.seek(member.offset_data)
            return file.read(member.size)

        for place, (key, members) in enumerate(groups.items()):
            record = members.get(f"{key}.json")
            data = read(record) if record else b""
            records.append((record.offset_data, record.size) if record else (0, 0))
            digest = hashlib.sha256(data)
            try:
                for name in _image_names(key, data, members):
                    image = read(members[name])
                    digest.update(image)
                    images.append((members[name].offset_data, members[name].size, *_size_or_zero(image)))
            except SampleRefused as error:
                refused[place] = str(error)
                del images[first[-1]:]
            first.append(len(images))
            digests.append(digest.digest())
    index = ShardIndex(Strings.of(list(groups)), np.array(records, dtype=np.int64).reshape(-1, 2), np.array(first, dtype=np.int64),
                       np.array(images, dtype=np.int64).reshape(-1, 4), np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32), refused)
    return ShardEntry(path.name, path.stat().st_size, file_sha256(path), len(groups)), index


def _image_names(key: str, record: bytes, members: dict[str, tarfile.TarInfo]) -> list[str]:
    """Full member names of the sample's pictures. Raises SampleRefused: missing_json, bad_json, missing_image, unnamed_image."""
    if not record:
        raise SampleRefused("missing_json", f"no {key}.json")
    folder = key.rpartition("/")[0]
    names = [f"{folder}/{name}" if folder else name for name in read_record(record).images]
    missing = [name for name in names if name not in members]
    if missing:
        raise SampleRefused("missing_image", f"{key}.json names {missing[0]}, which is not among its members")
    # The sample would be learned without them.
    unnamed = [name for name in members if name not in names and not name.lower().endswith(".json")]
    if unnamed:
        raise SampleRefused("unnamed_image", f'"images" of {key}.json does not name {unnamed[0]}, which lies beside it')
    return names


def refuse_repeated_keys(folder: Path, entries: Sequence[ShardEntry]) -> None:
    """Raises DataError if a key is in two of the indexed shards."""
    seen = {}
    for entry in entries:
        for key in read_shard_index(folder, entry).keys:
            if key in seen:
                raise DataError(f"{folder}: the key {key} is in {seen[key]} and in {entry.name}: keys name samples, make them differ")
            seen[key] = entry.name


def index_folder(folder: Path | str, progress: Callable[[str], None] = lambda shard: None) -> dict:
    """Index every *.tar of a folder, in name order, and return a manifest.

    Manifest: shards, samples, images, bytes, refused (reason -> samples that are indexed and will be left out), broken_images.
    Raises DataError for a tar that is damaged or unsafe, or keys that occur twice. `progress` is told each shard's name when done.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise DataError(f"no *.tar in {folder}: nothing to index")
    entries, reasons, images, broken = [], Counter(), 0, 0
    for path in paths:
        entry, index = index_shard(path)
        write_shard_index(folder, entry, index)
        entries.append(entry)
        reasons.update(reason.partition(":")[0] for reason in index.refused.values())
        images += len(index.images)
        broken += int((index.images[:, 2] == 0).sum())
        progress(entry.name)
    refuse_repeated_keys(folder, entries)
    write_folder_index(folder, entries)
    return {"shards": len(entries), "samples": sum(entry.samples for entry in entries), "images": images,
            "bytes": sum(entry.size for entry in entries), "refused": dict(sorted(reasons.items())), "broken_images": broken}


def main(arguments: list[str]) -> int:
    """`python -m data_prep index FOLDER ...`"""
    parser = argparse.ArgumentParser(prog="python -m data_prep index", description=f"Write {FOLDER_INDEX} beside the tars of a folder.")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing: compare every shard's bytes with the index that is there")
    options = parser.parse_args(arguments)
    for folder in options.folders:
        if options.check:
            shards = ShardFolder(folder, folder.name)
            shards.verify()
            print(f"{folder}: {len(shards.entries):,} shards, {len(shards):,} samples, as indexed")
            continue
        manifest = index_folder(folder)
        print(f"{folder}: {manifest['shards']:,} shards, {manifest['samples']:,} samples, {manifest['images']:,} images, "
              f"{manifest['bytes'] / 1e6:,.1f} MB")
        for reason, count in manifest["refused"].items():
            print(f"  {count:,} samples will be left out: {reason}")
        if manifest["broken_images"]:
            print(f"  {manifest['broken_images']:,} images have no readable header; their samples will be left out: broken_image")
    return 0
