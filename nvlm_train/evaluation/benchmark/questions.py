"""Public records to questions: what is asked, with which pictures, and what the scorer is told."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_uppercase
from typing import Any

from nvlm_train.config.benchmark import Benchmark
from nvlm_train.contracts import IMAGE_PLACEHOLDER, Sample, Turn
from nvlm_train.errors import DataError
from nvlm_train.evaluation.benchmark.shapes import SHAPES
from nvlm_train.evaluation.readers import Record, Records, filled, open_records, value_of

NO_PLACEHOLDER = "< image>"     # what a question's own text gets for `<image>`, which would mean a picture


@dataclass(frozen=True)
class Question:
    """One question of a benchmark. turns: examples, then the question itself, last. choices: texts of the options, A first.

    kept: what the scorer needs beside these, by the names of the public files.
    """

    id: str
    images: tuple[bytes, ...]
    turns: tuple[Turn, ...]
    truths: tuple[str, ...]
    choices: tuple[str, ...] = ()
    category: str = ""
    kept: Mapping = field(default_factory=dict)

    def sample(self, benchmark: str) -> Sample:
        """As generation takes it: the turns, and an assistant's that is to be written."""
        return Sample(self.id, benchmark, self.images, (*self.turns, Turn("assistant", "")), {"task": benchmark})

    def without_pictures(self) -> "Question":
        return replace(self, images=())


class Questions:
    """The questions of a benchmark, evenly spread over its files if there are more than a limit. Read anew by every iteration.

    count: of those asked. Raises DataError at once for a folder with another number of questions than the public release.
    """

    def __init__(self, benchmark: Benchmark, folders: Sequence[str], limit: int = 0):
        self.benchmark = benchmark
        self._records: Records = open_records(benchmark, folders)
        total = self._records.count()
        if benchmark.count and total != benchmark.count:
            raise DataError(f"{self._records.where} holds {total:,} questions, and {benchmark.name} has {benchmark.count:,}: it is another "
                            f"version or a part, and its score would be no score of {benchmark.title}. The public files: "
                            f"{benchmark.source}")
        if not total:
            raise DataError(f"{self._records.where} holds no question")
        self.count = min(limit, total) if limit else total
        self._numbers = [i * total // self.count for i in range(self.count)]

    def __iter__(self) -> Iterator[Question]:
        """Raises DataError: a record without a field, two of one id, a picture that is not there."""
        seen: set[str] = set()
        for number, record in zip(self._numbers, self._records.rows(self._numbers), strict=True):
            question = question_of(record, number, self.benchmark, self._records.where)
            if question.id in seen:
                raise DataError(f"{self._records.where}: two questions have the id {question.id!r}, so answers cannot be told apart")
            seen.add(question.id)
            yield question


def question_of(record: Record, number: int, benchmark: Benchmark, where: str) -> Question:
    """A record as the benchmark's recipe reads it. number: its place, which names it where the files have no ids. Raises DataError."""
    record = SHAPES[benchmark.shape](record, where)
    names = benchmark.fields
    choices = tuple(str(choice) for choice in _list(value_of(record, names.choices, where))) if names.choices else ()
    truths = tuple(str(truth) for truth in _list(value_of(record, names.truths, where)))
    if not truths:
        raise DataError(f"{where}: a question without an answer in {names.truths!r}: these are the files of a split whose answers are not "
                        "published")
    images = tuple(image for name in names.images for image in _images(value_of(record, name, where), where))
    asked = _asked(record, value_of(record, names.question, where), choices, benchmark, where)
    return Question(
        id=str(value_of(record, names.id, where)) if names.id else f"{number:06d}",
        images=images, turns=(*_shots(record, benchmark, where), Turn("user", _with_pictures(asked, len(images), benchmark))),
        truths=truths, choices=choices,
        category=str(value_of(record, names.category, where)) if names.category else "",
        kept={name: value_of(record, name, where) for name in names.kept})


def _asked(record: Record, question: Any, choices: Sequence[str], benchmark: Benchmark, where: str) -> str:
    prompt = benchmark.prompt
    options = "\n".join(prompt.option.format(letter=letter, text=text)
                        for letter, text in zip(ascii_uppercase, choices, strict=False))
    return filled(prompt.choice if choices else prompt.plain, {**record, "question": question, "options": options}, where)


def _shots(record: Record, benchmark: Benchmark, where: str) -> Iterator[Turn]:
    """The recipe's examples, then the record's own (MMLU's, one set a subject)."""
    shown = [(shot.question, shot.answer) for shot in benchmark.shots]
    shown += [(_asked({**record, **shot}, shot["question"], tuple(shot["choices"]), benchmark, where), shot["answer"])
              for shot in record.get("_shots", ())]
    for question, answer in shown:
        yield from (Turn("user", without_placeholders(question)), Turn("assistant", without_placeholders(answer)))


def without_placeholders(text: str) -> str:
    """The text with nothing that would stand for a picture."""
    return text.replace(IMAGE_PLACEHOLDER, NO_PLACEHOLDER)


def _with_pictures(text: str, pictures: int, benchmark: Benchmark) -> str:
    """The text with a placeholder for every picture, where the recipe wants them; the text's own are made harmless."""
    if benchmark.prompt.pictures == "placed":       # our own files, whose text has them
        return text
    text = without_placeholders(text)
    if benchmark.prompt.pictures == "numbered" and pictures:
        return " ".join(f"<image {number}>{IMAGE_PLACEHOLDER}" for number in range(1, pictures + 1)) + f"\n{text}"
    return f"{IMAGE_PLACEHOLDER}\n" * pictures + text


def _list(value: Any) -> Sequence:
    if value is None:
        return ()
    return value if isinstance(value, (list, tuple)) else (value,)


def _images(value: Any, where: str) -> Iterator[bytes]:
    """Pictures of a field: bytes, {bytes, path} as hubs store them, a list of these; none for nothing. Raises DataError."""
    if value is None:
        return
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _images(item, where)
    elif isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        yield value["bytes"]
    elif isinstance(value, bytes):
        yield value
    else:
        raise DataError(f"{where}: a picture must be stored in the file, and a record has {str(value)[:60]!r} in its place")
