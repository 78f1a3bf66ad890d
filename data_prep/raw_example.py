"""Real material in the forms in which datasets are published, from installed packages: what docs/preparing_data.md starts from.

    python -m data_prep.raw_example FOLDER
    python -m data_prep.raw_example FOLDER BEFORE AFTER     # of the pages in `benchmark`, how many `decontaminate` found

    shapes/     questions about pictures, as records of questions (easy_vqa; family qa_records)
    pages/      pages of documentation with their text, as synthdog-en has them (docstrings of installed packages; transcription)
    sums/       questions without pictures, as Alpaca has them (reasoning_gym; chat)
    benchmark/  some of the pages, shrunk and stored as JPEG, with questions: what must not be trained on

Needs the `demo` and `data` extras. The same installation gives the same files.
"""

import importlib
import inspect
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from data_prep import easy_vqa_facts, puzzles
from data_prep.convert.page import page
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import SampleRefused

MODULES = ("skimage.color", "skimage.draw", "skimage.exposure", "skimage.feature", "skimage.filters", "skimage.graph", "skimage.measure",
           "skimage.metrics", "skimage.morphology", "skimage.restoration", "skimage.segmentation", "skimage.transform", "skimage.util",
           "numpy", "numpy.linalg", "numpy.random", "numpy.fft")
LONGEST = 1200      # characters of a page
LEAK = 12           # every so many pages one is in the benchmark


def shapes(folder: Path, count: int) -> None:
    """`count` pictures and all of their questions."""
    (folder / "images").mkdir(parents=True)
    records = []
    for picture in easy_vqa_facts.pictures("train")[:count]:
        (folder / "images" / picture.path.name).write_bytes(picture.path.read_bytes())
        questions = [{"question": question, "answer": answer} for question, answer in picture.questions]
        records.append({"image": picture.path.name, "qas": questions})
    (folder / "questions.json").write_text(json.dumps(records), encoding="utf-8")


def documentation() -> Iterator[tuple[str, str]]:
    """Name and text of every documented function, as its module exports it: some are exported twice, as on real pages."""
    for module in MODULES:
        names = vars(importlib.import_module(module))
        for name in sorted(names):
            text = inspect.getdoc(names[name]) if callable(names[name]) and not name.startswith("_") else None
            if text and len(text) > 200:
                yield f"{module}.{name}", f"{module}.{name}\n\n{text}"[:LONGEST].rsplit(None, 1)[0]


def pages(folder: Path, count: int) -> None:
    """`count` pages with a metadata.jsonl."""
    folder.mkdir(parents=True)
    lines = []
    for name, text in documentation():
        try:
            png = page(text, 640, "dejavu", 15)
        except SampleRefused:       # a sign that the font lacks
            continue
        (folder / f"{name}.png").write_bytes(png)
        truth = json.dumps({"gt_parse": {"text_sequence": text}})
        lines.append(json.dumps({"file_name": f"{name}.png", "ground_truth": truth}))
        if len(lines) == count:
            break
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def sums(folder: Path, count: int) -> None:
    """`count` sums in one JSON file."""
    folder.mkdir(parents=True)
    records = [{"instruction": question, "input": "", "output": answer} for _, question, answer in puzzles.training(count, 0, seed=5)]
    (folder / "sums.json").write_text(json.dumps(records), encoding="utf-8")


def benchmark(folder: Path, taken: Path) -> None:
    """Some of the pages in `taken`, as another publisher would have stored them."""
    folder.mkdir(parents=True)
    rows = []
    for number, path in enumerate(sorted(taken.glob("*.png"))):
        if number % LEAK:
            continue
        with Image.open(path) as image:
            small = image.convert("RGB").resize((round(image.width * 0.8), round(image.height * 0.8)), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "JPEG", quality=80)
        (folder / f"{number:04d}.jpg").write_bytes(file.getvalue())
        rows.append(json.dumps({"image": f"{number:04d}.jpg", "question": "Which function does this page describe?"}))
    (folder / "questions.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write(folder: Path, pictures: int = 1000, documents: int = 600, texts: int = 2000) -> None:
    """All four. The folders must not be there yet."""
    shapes(folder / "shapes", pictures)
    pages(folder / "pages", documents)
    sums(folder / "sums", texts)
    benchmark(folder / "benchmark", folder / "pages")


def leaks(folder: Path, before: Path, after: Path) -> str:
    """What decontaminating `before` to `after` (folders of indexed shards of the pages) did, in words."""
    records = (folder / "pages" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    names = [json.loads(record)["file_name"] for record in records]

    def pages_in(shards: Path) -> set[str]:
        """Their keys end in the number of the record."""
        found = ShardFolder(shards, shards.name)
        return {names[int(found.key(number).rpartition("-")[2])] for number in range(len(found))}

    given = pages_in(before)
    rejected, planted = given - pages_in(after), given & set(sorted(names)[::LEAK])
    return (f"{len(planted)} of {len(sorted(names)[::LEAK])} planted pages were there, {len(planted & rejected)} were found, "
            f"{len(rejected - planted)} others were rejected")


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 3):
        print("usage: python -m data_prep.raw_example FOLDER [BEFORE AFTER]", file=sys.stderr)
        return 2
    folder, *shards = map(Path, arguments)
    if shards:
        print(leaks(folder, *shards))
    else:
        write(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
