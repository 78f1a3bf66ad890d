"""Scene text with places: OCR with boxes, and grounded OCR (paper Figure 11), from TextOCR, COCO-Text, ReCTS, ArT, LSVT and RCTW-17."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import ClassVar, Literal

from data_prep.convert import boxes, files
from data_prep.convert.base import Converter, Paths
from data_prep.convert.fields import NAME
from data_prep.convert.keys import key_of
from data_prep.convert.scene_text import PICTURES, Line, images_of, lines_of, rctw_file, rects_file
from data_prep.convert.tables import Files, Listed, Table
from data_prep.convert.turns import exchange
from data_prep.passes import Kept, Outcome
from data_prep.prompts import prompt
from nvlm_train.errors import DataError, SampleRefused

PER_PICTURE = {"rects": rects_file, "rctw": rctw_file}


@dataclass(frozen=True)
class Placed:
    """A legible text and its points in thousandths of the picture."""

    text: str
    points: Sequence[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class TextBoxes(Converter):
    """A sample for each picture that has legible text.

    format: of the annotations. annotations: the JSON file; for rects and rctw a glob of files, one for each picture. images: folders of
    pictures. turns: `ocr` asks for all text with boxes; `grounded` asks what stands in a place, and where a text stands, up to
    `regions` times; `mixed` is one of the two, chosen by the key.
    """

    TASK: ClassVar[str] = "ocr"

    format: Literal["textocr", "coco_text", "rects", "art", "lsvt", "rctw"]
    annotations: str
    images: Paths = (".",)
    turns: Literal["mixed", "ocr", "grounded"] = "mixed"
    regions: int = 8

    def tables(self) -> list[Table]:
        if self.format in PER_PICTURE:
            return [Files(self.root, tuple(files.find(self.root, [self.annotations])), PER_PICTURE[self.format])]
        path = files.find_one(self.root, self.annotations)
        return [Listed(path, partial(images_of, self.format, path, *files.signature(path)), (path,))]

    def check(self) -> None:
        if self.regions < 1:
            raise DataError(f"text_boxes: regions is at least 1, found {self.regions}")
        super().check()

    def key(self, table: Table, number: int, record: Mapping | None) -> str:
        return key_of(self.name, table.place(number) if isinstance(table, Files) else record[NAME])

    def convert(self, key: str, record: Mapping) -> Iterator[Outcome]:
        picture = self._picture(record)
        size = boxes.frame(picture, record.get("size"))
        texts, skipped = _legible(lines_of(self.format, record["annotations"]), size)
        if not texts:
            raise SampleRefused("no_text", f"{len(record['annotations'])} annotations, none legible ({dict(skipped)})")
        texts = in_reading_order(texts)
        form = self.turns if self.turns != "mixed" else random.Random(f"form/{key}").choice(["ocr", "grounded"])
        pairs = [_ocr(key, texts)] if form == "ocr" else _grounded(key, texts, self.regions)
        meta = {"form": form, "texts": len(texts), **skipped}
        yield Kept(self.sample(key, [picture], exchange(pairs), answers=[pairs[-1][1]], **meta))

    def _picture(self, record: Mapping) -> bytes:
        """As the annotations name it, by its last part alone, or by the annotations' stem."""
        named = record.get("file_name")
        names = [named, PurePosixPath(named).name] if isinstance(named, str) else [record[NAME] + suffix for suffix in PICTURES]
        for name in names:
            try:
                return files.read_image(self.root, self.images, name)
            except SampleRefused as refusal:
                if refusal.reason != "missing_image":
                    raise
                missing = refusal
        raise missing


def _legible(lines: Sequence[Line], size: tuple[int, int]) -> tuple[list[Placed], dict[str, int]]:
    """The texts that can be used, and how many others there are: `illegible`, or `outside` the picture."""
    texts, skipped = [], Counter(illegible=0, outside=0)
    for line in lines:
        points = boxes.scaled(line.points, size)
        if not line.legible:
            skipped["illegible"] += 1
        elif points is None:
            skipped["outside"] += 1
        else:
            boxes.refuse_markup(line.text)
            texts.append(Placed(line.text, points))
    return texts, dict(skipped)


def in_reading_order(texts: Sequence[Placed]) -> list[Placed]:
    """From top to bottom, and from left to right within a line: texts whose middle lies within the height of the line's first."""
    rows: list[tuple[float, float, list[Placed]]] = []
    for text in sorted(texts, key=lambda text: (_middle(text), _left(text), text.text)):
        middle = _middle(text)
        if rows and rows[-1][0] <= middle <= rows[-1][1]:
            rows[-1][2].append(text)
        else:
            rows.append((min(y for _, y in text.points), max(y for _, y in text.points), [text]))
    return [text for _, _, row in rows for text in sorted(row, key=lambda text: (_left(text), text.text))]


def _middle(text: Placed) -> float:
    return sum(y for _, y in text.points) / len(text.points)


def _left(text: Placed) -> int:
    return min(x for x, _ in text.points)


def _ocr(key: str, texts: Sequence[Placed]) -> tuple[str, str]:
    return prompt("ocr_boxes", key), "".join(f"<ref>{text.text}</ref>{boxes.region(text.points)}" for text in texts)


def _grounded(key: str, texts: Sequence[Placed], regions: int) -> list[tuple[str, str]]:
    """Some of the texts, in reading order: what stands there, or, of texts that occur once, where it stands."""
    chance = random.Random(f"regions/{key}")
    chosen = sorted(chance.sample(range(len(texts)), min(regions, len(texts))))
    counts = Counter(text.text for text in texts)
    pairs = []
    for number in chosen:
        text, place, own = texts[number].text, boxes.region(texts[number].points), f"{key}/{number}"
        if counts[text] == 1 and chance.random() < 0.5:
            pairs.append((prompt("referring", own, phrase=f"<ref>{text}</ref>"), place))
        else:
            pairs.append((prompt("grounded_ocr", own, region=place), text))
    return pairs
