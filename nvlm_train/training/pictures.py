"""The pictures of answered samples, small enough for a tracker: rows of predictions.jsonl in, RGB pictures out."""

import base64
from collections.abc import Mapping

from PIL import Image, ImageDraw

from nvlm_train.data.images import decode

SIDE = 256          # pixels of a picture's longer side
AT_MOST = 4         # pictures shown of one sample, side by side
_GAP, _LINE, _LETTERS = 4, 12, 60


def picture_of(row: Mapping, side: int = SIDE) -> Image.Image:
    """All pictures of a sample side by side; a white one for text alone, or where they cannot be decoded."""
    shown = [found for address in row.get("images", ())[:AT_MOST] if (found := _decoded(address, side)) is not None]
    if not shown:
        return Image.new("RGB", (side, side // 4), "white")
    width = sum(each.width for each in shown) + _GAP * (len(shown) - 1)
    canvas, left = Image.new("RGB", (width, max(each.height for each in shown)), "white"), 0
    for each in shown:
        canvas.paste(each, (left, 0))
        left += each.width + _GAP
    return canvas


def captioned(picture: Image.Image, caption: str) -> Image.Image:
    """The picture with lines of text below it, for viewers that show no captions."""
    lines = [line[start:start + _LETTERS] for line in caption.splitlines() for start in range(0, max(1, len(line)), _LETTERS)]
    width = max(picture.width, 6 * max(map(len, lines), default=0) + 2 * _GAP)
    canvas = Image.new("RGB", (width, picture.height + _GAP + _LINE * len(lines)), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        # The font that comes with Pillow knows no other letters.
        draw.text((_GAP, picture.height + _LINE * number), line.encode("latin-1", "replace").decode("latin-1"), fill="black")
    return canvas


def _decoded(address: str, side: int) -> Image.Image | None:
    """The picture in a data address, by the same strict rules as training's; None if there is none."""
    lead, _, content = address.partition(";base64,")
    if not lead.startswith("data:image/"):
        return None
    try:
        picture = Image.fromarray(decode(base64.b64decode(content)))
    except Exception:  # noqa: BLE001 (a sample that was refused for its picture is shown without it)
        return None
    picture.thumbnail((side, side))
    return picture
