"""Answered samples for the page: pictures, tiles and texts from the run directory's predictions.jsonl files."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm_train.training.logs import read_rows

PER_TASK = 12               # examples shown of each task
MAX_PICTURE = 4 * 2**20     # bytes of one embedded picture
_DATA_URI = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/=\s]+")
_KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp", b"GIF8": "gif"}


@dataclass(frozen=True)
class Tile:
    """A tile as the model got it. column and row: its place in its image's grid, from 0; None for a thumbnail or if unknown."""

    tag: str
    source: str | None
    column: int | None
    row: int | None


@dataclass(frozen=True)
class Example:
    key: str
    images: Sequence[str]
    grids: Sequence[Sequence[Tile]]     # the tiles of each image
    prompt: str
    answer: str
    truth: str
    correct: bool | None


@dataclass(frozen=True)
class TaskGallery:
    """Examples of one task, chosen to be telling: their share of right ones says nothing about the score."""

    task: str
    shown: Sequence[Example]

    @property
    def remark(self) -> str:
        count = f"{len(self.shown)} example{'s' if len(self.shown) != 1 else ''}"
        mixed = {example.correct for example in self.shown} >= {True, False}
        return f"{count}, wrong and right ones in turn whatever their share" if mixed else count


def galleries(run_dir: Path) -> list[TaskGallery]:
    """Up to PER_TASK examples of every task, wrong and right ones in turn so that neither hides the other."""
    tasks: dict[str, list[tuple[Path, dict]]] = {}
    for path in sorted(run_dir.rglob("predictions.jsonl")):
        for row in read_rows(path):
            tasks.setdefault(str(row.get("task", "")), []).append((path.parent, row))
    return [
        TaskGallery(task, [_example(folder, run_dir, row) for folder, row in _mixed(rows)[:PER_TASK]])
        for task, rows in tasks.items()
    ]


def _mixed(rows: list[tuple[Path, dict]]) -> list[tuple[Path, dict]]:
    wrong = [item for item in rows if item[1].get("correct") is False]
    other = [item for item in rows if item[1].get("correct") is not False]
    pairs = min(len(wrong), len(other))
    turns = [item for pair in zip(other, wrong) for item in pair]
    return [*turns, *other[pairs:], *wrong[pairs:]]


def _example(folder: Path, run_dir: Path, row: dict) -> Example:
    images = [picture for name in row.get("images", ()) if (picture := embedded(name, folder, run_dir))]
    by_image: dict[int, list[Tile]] = {}
    for tile in row.get("tiles", ()):
        picture = embedded(tile.get("png"), folder, run_dir)
        by_image.setdefault(int(tile.get("image", 0)), []).append(
            Tile(str(tile.get("tag", "")), picture, _place(tile.get("col")), _place(tile.get("row")))
        )
    correct = row.get("correct")
    return Example(
        key=str(row.get("key", "")), images=images, grids=[by_image[number] for number in sorted(by_image)],
        prompt=str(row.get("prompt", "")), answer=str(row.get("answer", "")), truth=str(row.get("truth", "")),
        correct=None if correct is None else bool(correct),
    )


def _place(value) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 64 else None


def embedded(name, folder: Path, run_dir: Path) -> str | None:
    """A picture as a data address: `name` is one already, or a file relative to `folder`. None if it is neither, is too large,
    or lies outside the run directory (a row must not pull other files into a page that gets passed around)."""
    if not isinstance(name, str) or not name:
        return None
    if name.startswith("data:"):
        return name if len(name) <= MAX_PICTURE * 1.4 and _DATA_URI.fullmatch(name) else None
    path = (folder / name).resolve()
    if not path.is_relative_to(run_dir.resolve()) or not path.is_file() or path.stat().st_size > MAX_PICTURE:
        return None
    data = path.read_bytes()
    kind = next((kind for magic, kind in _KINDS.items() if data.startswith(magic)), None)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}" if kind else None
