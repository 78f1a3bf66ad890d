"""Pictures of one word or number, drawn with matplotlib's fonts over crops of photographs that come with scikit-image.

A word fills the width of the picture; a number stands with a digit in each half, which with 64-px tiles is a digit to a tile, so
that no tile alone holds the answer. Nothing is downloaded. Training and test pictures never share a photograph. The same
seed gives the same pictures on one installation (fonts and PNG coding may differ between versions of Pillow).
"""

import io
import random
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_prep import phrases

BACKGROUNDS = {
    "train": ("astronaut", "brick", "camera", "coins", "grass", "hubble_deep_field", "moon", "retina", "rocket"),
    "test": ("coffee", "cat", "gravel"),
}
FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif-Bold.ttf")
CANVAS = (128, 64)      # width, height in pixels
JITTER = 4              # pixels that the text may lie off its place, in each direction
LETTERS = (26, 31)      # font sizes of words, at most; digits are half as large again
PLAIN = 0.65            # how far a photograph is faded to white behind the text


@cache
def background(name: str) -> Image.Image:
    """One of scikit-image's own photographs, as RGB."""
    import skimage.data

    pixels = np.asarray(getattr(skimage.data, name)())
    return Image.fromarray(pixels).convert("RGB")


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that comes with matplotlib."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def draw(text: str, split: str, random_: random.Random) -> bytes:
    """PNG of `text` over a faded crop of one of the split's photographs."""
    width, height = CANVAS
    photograph = background(random_.choice(BACKGROUNDS[split]))
    left = random_.randrange(photograph.width - width)
    top = random_.randrange(photograph.height - height)
    canvas = photograph.crop((left, top, left + width, top + height))
    canvas = Image.blend(canvas, Image.new("RGB", canvas.size, "white"), PLAIN)
    ink = (random_.randrange(60),) * 3
    name, size = random_.choice(FONTS), random_.randrange(*LETTERS)
    pen = ImageDraw.Draw(canvas)
    if text.isdigit():
        cell = width // len(text)
        for place, digit in enumerate(text):
            pen.text(_near(place * cell + cell // 2, height // 2, random_), digit, ink, font(name, size * 3 // 2), anchor="mm")
    else:
        pen.text(_near(width // 2, height // 2, random_), text, ink, _fitting(text, name, size, width - 2 * JITTER), anchor="mm")
    out = io.BytesIO()
    canvas.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _near(x: int, y: int, random_: random.Random) -> tuple[int, int]:
    return x + random_.randint(-JITTER, JITTER), y + random_.randint(-JITTER, JITTER)


def _fitting(text: str, name: str, size: int, width: int) -> ImageFont.FreeTypeFont:
    """The font at `size`, or the largest smaller one at which `text` is at most `width` pixels wide."""
    while font(name, size).getlength(text) > width:
        size -= 1
    return font(name, size)


@cache
def pictures(split: str, count: int, seed: int) -> tuple[tuple[str, str, bytes], ...]:
    """`count` times (kind, text, PNG); kind is `word` or `number`, half each. Kept in memory: stages share their pictures."""
    random_ = random.Random(f"rendered/{split}/{seed}")
    found = []
    for index in range(count):
        kind = ("word", "number")[index % 2]
        text = random_.choice(phrases.WORDS) if kind == "word" else str(random_.randrange(10, 100))
        found.append((kind, text, draw(text, split, random_)))
    return tuple(found)
