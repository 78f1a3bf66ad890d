"""Reads benchmarks, whatever they lie in: shards of ours, or a folder of pictures with questions in jsonl, json, csv or txt."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nvlm_train.contracts import IMAGE_PLACEHOLDER
from nvlm_train.data.index import FOLDER_INDEX
from nvlm_train.data.records import IMAGE_EXTENSIONS
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import DataError, SampleRefused

QUESTION_FIELDS = ("question", "prompt", "query", "problem", "instruction", "text", "caption")
IMAGE_FIELDS = ("image", "images", "image_path", "image_file", "img", "img_path", "file_name", "filename", "image_id")
NAME_FIELDS = ("question_id", "id", "index", "pid", "qid")
LIST_FIELDS = ("questions", "data", "annotations", "samples", "examples")   # where a json object keeps its rows


@dataclass(frozen=True)
class Item:
    """One entry of a benchmark. texts: all that is written in it; question: what is asked, "" for a picture without one.

    pictures: where they are, for `picture_of`. name: the entry's own, for a person to find it.
    """

    benchmark: str
    name: str
    question: str
    texts: tuple[str, ...]
    pictures: tuple[str, ...]


@dataclass
class Reading:
    """What reading a benchmark met that a person should know. absent: pictures that entries name and that are not there."""

    absent: int = 0
    refused: int = 0


def items_of(folder: Path, reading: Reading) -> Iterator[Item]:
    """The entries of one benchmark, in a fixed order.

    Raises DataError: no such folder, nothing in it that is read here, a file that cannot be read, rows without a question.
    """
    if not folder.is_dir():
        raise DataError(f"decontaminate: no benchmark folder at {folder}")
    if (folder / FOLDER_INDEX).is_file():
        yield from _of_shards(folder, reading)
        return
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    pictures = {str(path.relative_to(folder)): path for path in files if path.suffix[1:].lower() in IMAGE_EXTENSIONS}
    tables = [path for path in files if path.suffix.lower() in _ROWS]
    if not pictures and not tables:
        raise DataError(f"{folder} holds neither shards with an index, nor pictures, nor questions ({', '.join(_ROWS)})")
    by_name: dict[str | int, list[str]] = {}
    for place in pictures:
        for called in _names(place):
            by_name.setdefault(called, []).append(place)
    named = set()
    for path in tables:
        for item in _of_rows(folder, path, by_name, reading):
            named.update(item.pictures)
            yield item
    for place in pictures:
        if place not in named:
            yield Item(folder.name, place, "", (), (place,))


def picture_of(folder: Path, place: str) -> bytes:
    """Bytes of a picture that an item names. Raises DataError, SampleRefused: it cannot be read."""
    if (folder / FOLDER_INDEX).is_file():
        number, _, image = place.partition("/")
        return ShardFolder(folder, folder.name).read(int(number)).images[int(image)]
    try:
        return (folder / place).read_bytes()
    except OSError as error:
        raise DataError(f"{folder / place} cannot be read: {error.strerror}") from error


def _of_shards(folder: Path, reading: Reading) -> Iterator[Item]:
    shards = ShardFolder(folder, folder.name)
    for number in range(len(shards)):
        try:
            sample = shards.read(number)
        except SampleRefused:
            reading.refused += 1
            continue
        texts = tuple(turn.text for turn in sample.turns if turn.role != "system")
        asked = "\n".join(turn.text.replace(IMAGE_PLACEHOLDER, "") for turn in sample.turns if turn.role == "user")
        yield Item(folder.name, sample.key, asked, texts, tuple(f"{number}/{place}" for place in range(len(sample.images))))


def _of_rows(folder: Path, path: Path, by_name: Mapping[str | int, list[str]], reading: Reading) -> Iterator[Item]:
    where = str(path.relative_to(folder))
    for number, row in enumerate(_rows(path), 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}: expected an object with a question, found {str(row)[:60]}")
        question = next((row[name] for name in QUESTION_FIELDS if isinstance(row.get(name), str)), None)
        if question is None:
            raise DataError(f"{path}, row {number} has no text under any of {', '.join(QUESTION_FIELDS)}; it has "
                            f"{', '.join(map(str, row)) or 'nothing'}. Rename the column that holds the question")
        name = next((str(row[name]) for name in NAME_FIELDS if row.get(name) not in (None, "")), str(number))
        named = next((row[name] for name in IMAGE_FIELDS if row.get(name) not in (None, "", [])), [])
        places = [_places(image, by_name) for image in (named if isinstance(named, list) else [named])]
        reading.absent += places.count([])
        yield Item(folder.name, f"{where}:{name}", question, (question,), tuple(place for found in places for place in found))


def _names(place: str) -> set[str | int]:
    """What a row may call a picture: its path, its file's name with or without extension, or, as COCO does, the number in it."""
    stem = Path(place).stem
    number = re.search(r"[0-9]+$", stem)
    return {place, Path(place).name, stem, *([int(number[0])] if number else ())}


def _places(image: object, by_name: Mapping[str | int, list[str]]) -> list[str]:
    """The pictures that a row may mean; several of one name are all meant, since one too many does no harm here."""
    name = str(image)
    candidates = (name, Path(name).name, Path(name).stem, *([image] if isinstance(image, int) else ()))
    return next((by_name[candidate] for candidate in candidates if candidate in by_name), [])


def _rows(path: Path) -> Iterator[object]:
    try:
        yield from _ROWS[path.suffix.lower()](path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, OSError) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error


def _of_json(text: str) -> list:
    content = json.loads(text)
    if isinstance(content, dict):
        rows = next((content[name] for name in LIST_FIELDS if isinstance(content.get(name), list)), None)
        content = rows if rows is not None else [{NAME_FIELDS[0]: key, **row} for key, row in content.items() if isinstance(row, dict)]
    return content if isinstance(content, list) else [content]


_ROWS = {
    ".jsonl": lambda text: [json.loads(line) for line in text.split("\n") if line.strip()],
    ".json": _of_json,
    ".csv": lambda text: list(csv.DictReader(io.StringIO(text))),
    ".tsv": lambda text: list(csv.DictReader(io.StringIO(text), delimiter="\t")),
    ".txt": lambda text: [{"question": line} for line in text.splitlines() if line.strip()],
}
