"""Draws text as a page: black on white, wrapped at words. The same text gives the same pixels wherever the same Pillow is."""

import io
from bisect import bisect_right
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from data_prep import rendered_text
from nvlm_train.errors import DataError, SampleRefused

FONTS = ("builtin", "dejavu")
MARGIN = 24         # pixels on every side
SPACING = 1.35      # line height, of the font's size
LONGEST = 120       # lines a page holds
CHARACTERS = 10_000     # more are not even measured


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """`builtin`: the one inside Pillow, Latin letters only; `dejavu`: with mathematical signs, Greek and Cyrillic, from matplotlib.

    Basic layout, since the other needs a library that not every installation of Pillow has. Raises DataError.
    """
    if name == "builtin":
        return ImageFont.load_default(size).font_variant(layout_engine=ImageFont.Layout.BASIC)
    try:
        return rendered_text.font("DejaVuSans.ttf", size).font_variant(layout_engine=ImageFont.Layout.BASIC)
    except ImportError:
        raise DataError("font=dejavu comes with matplotlib, which is not installed: pip install -e .[demo]; or take font=builtin") from None


@cache
def _missing(name: str, character: str) -> bool:
    """Whether the font draws its sign for unknown characters instead."""
    drawn, unknown = font(name, 20).getmask(character), font(name, 20).getmask("\U0010ffff")
    return drawn.size == unknown.size and bytes(drawn) == bytes(unknown)


def page(text: str, width: int, name: str, size: int) -> bytes:
    """PNG of `text`, `width` pixels wide and as high as it needs. Raises SampleRefused: no_glyph, too_long_for_page."""
    if unknown := sorted(character for character in set(text) if not character.isspace() and _missing(name, character)):
        raise SampleRefused("no_glyph", f"the font {name} lacks {''.join(unknown[:20])!r}; font=dejavu has more signs")
    if len(text) > CHARACTERS:
        raise SampleRefused("too_long_for_page", f"{len(text):,} characters, at most {CHARACTERS:,} are drawn")
    letters = font(name, size)
    lines = [line for paragraph in text.splitlines() for line in _wrapped(paragraph, letters, width - 2 * MARGIN)]
    if len(lines) > LONGEST:
        raise SampleRefused("too_long_for_page", f"{len(lines)} lines, a page holds {LONGEST}")
    step = round(size * SPACING)
    canvas = Image.new("L", (width, 2 * MARGIN + step * len(lines)), 255)
    pen = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + number * step), line, 0, letters)
    out = io.BytesIO()
    canvas.save(out, "PNG")
    return out.getvalue()


def _wrapped(paragraph: str, letters: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines at most `width` pixels wide; a word that is wider alone is cut."""
    lines, line = [], ""
    for word in paragraph.split():
        longer = f"{line} {word}" if line else word
        if _fits(longer, letters, width):
            line = longer
            continue
        lines += [line] if line else []
        while not _fits(word, letters, width):
            end = bisect_right(range(min(len(word), width)), width, lo=2, key=lambda count: letters.getlength(word[:count])) - 1
            lines.append(word[:end])
            word = word[end:]
        line = word
    return [*lines, line]


def _fits(text: str, letters: ImageFont.FreeTypeFont, width: int) -> bool:
    """A character is at least a pixel wide: longer texts need no measuring."""
    return len(text) <= width and letters.getlength(text) <= width
