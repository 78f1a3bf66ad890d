"""Pictures and samples for the tests of curation. In a file of their own, so that other processes can import them."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.shards import write_shards
from nvlm_train.contracts import Sample, Turn


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
