"""Places in pictures as text: `<box>(x1,y1),(x2,y2)</box>` and `<quad>(x1,y1),…,(x4,y4)</quad>`, after `<ref>text</ref>` (paper Figure 11).

The paper does not state the range of coordinates. Ours: thousandths of the upright picture's width and height, whole numbers from 0 to
1000, so that they survive resizing and cropping into tiles.
"""

import io
from collections.abc import Sequence

from PIL import Image

from nvlm_train.contracts import IMAGE_PLACEHOLDER
from nvlm_train.data.images import image_size, oddities
from nvlm_train.errors import SampleRefused

SCALE = 1000
MARKUP = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", IMAGE_PLACEHOLDER)
Points = Sequence[tuple[float, float]]


def frame(image: bytes, declared: tuple[int, int] | None = None) -> tuple[int, int]:
    """(width, height) of the picture that the annotations speak of. declared: what the dataset says it is, if it does.

    Raises SampleRefused: broken_image, image_too_large; size_mismatch (both sizes); turned_picture, if EXIF turns or mirrors it and
    nothing tells whether the annotations were made before or after.
    """
    upright = image_size(image)
    if declared is not None and declared != upright:
        raise SampleRefused("size_mismatch", f"annotated at {declared[0]}x{declared[1]}, the picture is {upright[0]}x{upright[1]}")
    with Image.open(io.BytesIO(image)) as opened:       # the header only
        stored = opened.size
    if "turned" in oddities(image) and (declared is None or stored == upright):     # half a turn or a mirror keeps the size
        raise SampleRefused("turned_picture", f"its EXIF orientation turns or mirrors it (stored as {stored[0]}x{stored[1]}, shown as "
                                              f"{upright[0]}x{upright[1]}): boxes may mean either")
    return upright


def rectangle(x: float, y: float, width: float, height: float) -> Points:
    """Corners of COCO's [x, y, width, height], clockwise from the top left."""
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def paired(numbers: Sequence[float]) -> Points:
    """Points of x1, y1, x2, y2 … Raises SampleRefused("bad_box") if that is not what it is."""
    try:
        values = [float(number) for number in numbers]
    except (TypeError, ValueError, OverflowError) as error:
        raise SampleRefused("bad_box", f"coordinates are numbers, found {str(numbers)[:80]}") from error
    if len(values) < 6 or len(values) % 2 or not all(abs(value) < 1e9 for value in values):
        raise SampleRefused("bad_box", f"{len(values)} coordinates, an even number from 6 on is needed: {str(numbers)[:80]}")
    return list(zip(values[::2], values[1::2], strict=True))


def scaled(points: Points, size: tuple[int, int]) -> list[tuple[int, int]] | None:
    """In thousandths of the picture, clamped to it; None if nothing of the area lies inside."""
    width, height = size
    inside = [(_thousandths(x, width), _thousandths(y, height)) for x, y in points]
    x, y = zip(*inside, strict=True)
    return inside if max(x) > min(x) and max(y) > min(y) else None


def _thousandths(value: float, side: int) -> int:
    return min(max(int(value * SCALE / side + 0.5), 0), SCALE)


def region(points: Sequence[tuple[int, int]]) -> str:
    """A quad for four points that are no upright rectangle, else the box around them."""
    x, y = zip(*points, strict=True)
    if len(points) == 4 and len(set(points)) == 4 and not (len(set(x)) == 2 and len(set(y)) == 2):
        return f"<quad>{_listed(points)}</quad>"
    return f"<box>{_listed([(min(x), min(y)), (max(x), max(y))])}</box>"


def _listed(points: Sequence[tuple[int, int]]) -> str:
    return ",".join(f"({x},{y})" for x, y in points)


def refuse_markup(text: str) -> None:
    """Raises SampleRefused("markup_in_text") for text that would read as a place, or as a picture's."""
    if any(mark in text for mark in MARKUP):
        raise SampleRefused("markup_in_text", f"{text[:80]!r} holds one of {', '.join(MARKUP)}")
