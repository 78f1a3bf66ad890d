"""Reads the annotations of scene text datasets into one form: which picture, and which text stands where.

TextOCR https://textvqa.org/textocr/dataset, COCO-Text v2 https://bgshih.github.io/cocotext/, ReCTS https://rrc.cvc.uab.es/?ch=12,
ArT ?ch=14, LSVT ?ch=16 of the same site, RCTW-17 https://rctw.vlrlab.net/dataset.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.convert.boxes import Points, paired
from data_prep.convert.files import load_json
from data_prep.convert.tables import one_object
from nvlm_train.errors import DataError, SampleRefused

ILLEGIBLE = ("###", "*", ".", "")
PICTURES = (".jpg", ".jpeg", ".png", ".gif")


@dataclass(frozen=True)
class Line:
    """A word or line of text; `legible` as its annotators say."""

    points: Points
    text: str
    legible: bool = True


def line(points: Points, text: Any, legible: bool = True) -> Line:
    text = " ".join(str("" if text is None else text).split())
    return Line(points, text, legible and text not in ILLEGIBLE)


@lru_cache(maxsize=1)
def images_of(format: str, path: Path, size: int, changed: int) -> tuple[Mapping, ...]:
    """A record for each picture of one large annotation file: `_name`, `file_name`, `set`, `size`, `annotations`."""
    content = load_json(path)
    try:
        return tuple(_of_words(content) if format in ("textocr", "coco_text") else _of_lists(content))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is not in the form of {format} ({error!r}); see docs/converters.md") from error


def _of_words(content: Mapping) -> list[Mapping]:
    """TextOCR and COCO-Text: `imgs` and `anns`, objects by id."""
    by_image: dict[str, list] = {str(number): [] for number in content["imgs"]}
    for annotation in content["anns"].values():
        by_image.setdefault(str(annotation["image_id"]), []).append(annotation)
    images = {str(number): image for number, image in content["imgs"].items()}
    return [{"_name": number, "file_name": images.get(number, {}).get("file_name") or images.get(number, {}).get("filename"),
             "set": images.get(number, {}).get("set"), "size": _size(images.get(number, {})), "annotations": own}
            for number, own in by_image.items()]


def _size(image: Mapping) -> tuple[int, int] | None:
    return (int(image["width"]), int(image["height"])) if image.get("width") and image.get("height") else None


def _of_lists(content: Mapping) -> list[Mapping]:
    """ArT and LSVT: a list of annotations by the picture's stem."""
    if any(not isinstance(own, list) for own in content.values()):
        raise TypeError("an object of lists is needed")
    return [{"_name": stem, "file_name": None, "set": None, "size": None, "annotations": own} for stem, own in content.items()]


def lines_of(format: str, annotations: Sequence[Any]) -> list[Line]:
    """The texts of one picture. Raises SampleRefused: bad_annotation, bad_box."""
    if not isinstance(annotations, (list, tuple)) or not all(isinstance(annotation, Mapping) for annotation in annotations):
        raise SampleRefused("bad_annotation", f"a list of objects is needed, found {str(annotations)[:80]}")
    try:
        return [_READ[format](annotation) for annotation in annotations]
    except (KeyError, TypeError, ValueError) as error:
        raise SampleRefused("bad_annotation", f"not in the form of {format}: {error!r}") from error


def _textocr(annotation: Mapping) -> Line:
    return line(paired(annotation["points"]), annotation["utf8_string"])


def _coco_text(annotation: Mapping) -> Line:
    return line(paired(annotation["mask"]), annotation.get("utf8_string"), annotation.get("legibility") == "legible")


def _art(annotation: Mapping) -> Line:
    points = paired([value for point in annotation["points"] for value in point])
    return line(points, annotation["transcription"], not annotation.get("illegibility", False))


def _rects(annotation: Mapping) -> Line:
    return line(paired(annotation["points"]), annotation["transcription"], not annotation.get("ignore", 0))


_READ = {"textocr": _textocr, "coco_text": _coco_text, "art": _art, "lsvt": _art, "rects": _rects, "rctw": _rects}


def rects_file(path: Path) -> Mapping:
    """ReCTS: a JSON file for each picture, of which the lines count (its `chars` are parts of them)."""
    return {"annotations": one_object(path).get("lines")}


def rctw_file(path: Path) -> Mapping:
    """RCTW-17: a text file for each picture, x1,y1,…,x4,y4,difficult,"text" a line. Raises SampleRefused: not_utf8, bad_annotation."""
    try:
        rows = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SampleRefused("not_utf8", f"byte {error.start:,} of {path.name}") from error
    found = []
    for number, row in enumerate(rows, 1):
        if row.strip():
            parts = row.strip().split(",", 9)
            if len(parts) != 10:
                raise SampleRefused("bad_annotation", f"line {number} of {path.name} has {len(parts)} parts, 10 are needed: {row[:80]}")
            found.append({"points": parts[:8], "ignore": 0, "transcription": parts[9].strip().strip('"')})
    return {"annotations": found}
