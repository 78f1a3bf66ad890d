"""What the data tests are made of: a small model's settings, pictures, conversations, samples."""

import io

import numpy as np
from PIL import Image

from nvlm_train.config import schema
from nvlm_train.contracts import Sample, Turn


def small_model(architecture: str = "nvlm_d", tag_mask: bool = True, **tags) -> schema.Model:
    """Tiles of 28 px in patches of 7: 4x4 patches, 4 tokens a tile after the 2x2 shuffle. Room for any tag in the memory."""
    return schema.Model(architecture, vision=schema.Vision(tile_size=28, patch=7), language=schema.Language(vocab=512),
                        cross_attention=schema.CrossAttention(tag_mask=tag_mask), tags=schema.Tags(**{"max_tokens": 40, **tags}))


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with some noise, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    smooth = np.stack([x, y, 0.5 + 0.5 * np.sin(7 * x * y + seed)], axis=2)
    return np.clip(smooth * 220 + rng.normal(0, 8, smooth.shape) + 15, 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 95, **options} if kind == "JPEG" else options))
    return file.getvalue()


def conversation(question: str, answer: str) -> tuple[Turn, ...]:
    return Turn("user", question), Turn("assistant", answer)


def make_samples(count: int, source: str = "mixed", text_only_every: int = 3) -> list[Sample]:
    """Samples with 0, 1 or 2 pictures of differing shapes, and answers of differing lengths."""
    samples = []
    for i in range(count):
        n_images = i % text_only_every and 1 + (i % 5 == 4)
        images = tuple(encoded(picture(20 + 13 * (i % 7), 20 + 17 * (i % 4), seed=i), "PNG" if i % 4 == 1 else "JPEG")
                       for _ in range(n_images))
        turns = conversation("What is it? " * (1 + i % 3), f"Picture number {i}" + " and so on" * (i % 4) + ".")
        samples.append(Sample(f"{source}-{i:04d}", source, images, turns, {"task": "test"}))
    return samples
