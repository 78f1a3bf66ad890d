"""Pictures and samples for the tests of curation. In a file of their own, so that other processes can import them."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.shards import index_folder, write_shards
from nvlm_train.contracts import Sample, Turn
from nvlm_train.data.shards import ShardFolder


def scene(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    """A picture of a dozen overlapping bars: different seeds have clearly different hashes."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 200, np.uint8)
    for _ in range(12):
        left, top = rng.integers(width), rng.integers(height)
        pixels[top:top + rng.integers(5, height // 2), left:left + rng.integers(5, width // 2)] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def stored(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def asked(key: str, question: str, answer: str, *images: bytes, **meta) -> Sample:
    return Sample(key, "toys", images, (Turn("user", question), Turn("assistant", answer)), meta)


def folder_of(path: Path, samples: Iterable[Sample], samples_per_shard: int = 1000) -> Path:
    write_shards(path, samples, samples_per_shard)
    return path


LONG = ("the cat sat on the mat near a window and looked out at the grey rain that fell on the roofs of the old town while "
        "somebody in the house was playing a slow song on a piano that had not been tuned for many years")


def varied(number: int) -> str:
    """LONG with one word changed: a Jaccard similarity of about 0.75 in word 5-grams for one in the middle."""
    words = LONG.split()
    words[number] = f"word{number}"
    return " ".join(words)


def raw_folder(path: Path, members: dict[str, bytes]) -> Path:
    """A folder of one shard with exactly these members, as someone else may have written it."""
    path.mkdir(parents=True)
    with tarfile.open(path / "theirs.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    index_folder(path)
    return path


def record(question: str, answer: str, *images: str) -> bytes:
    turns = [{"role": "user", "text": question}, {"role": "assistant", "text": answer}]
    return json.dumps({"turns": turns, "images": images}).encode()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and holds hardly any data."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def reasons(out: Path) -> dict[str, str]:
    """Key -> reason of what a pass left out."""
    lines = [json.loads(line) for path in sorted((out / "passed").glob("*.rejected.jsonl")) for line in path.read_text().splitlines()]
    assert all(line["detail"] for line in lines)
    return {line["key"]: line["reason"] for line in lines}


def read_all(folder: Path) -> dict[str, Sample]:
    shards = ShardFolder(folder, "toys")
    return {shards.key(number): shards.read(number) for number in range(len(shards))}
