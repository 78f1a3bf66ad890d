"""Files of answers: a JSON object a line with `id` and `answer`, as we write them and as they are scored without a model."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from nvlm_train.errors import DataError
from nvlm_train.evaluation.benchmark.results import Answered

SHOWN = 5       # ids that a message names


def read_answers(path: Path, ids: Sequence[str]) -> list[str]:
    """The answers to the questions of these ids, in their order.

    Raises DataError, with the numbers: ids without an answer, answers to no question, two answers to one, lines that are not so.
    """
    answers: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"predictions={path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        key, answer = _row(path, number, line)
        if key in answers:
            raise DataError(f"{path}, line {number}: a second answer to {key!r}; which one counts must be decided before scoring")
        answers[key] = answer
    _check_ids(path, ids, answers)
    return [answers[key] for key in ids]


def _row(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number} is not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("answer"), str) or not isinstance(row.get("id"), (str, int)):
        raise DataError(f'{path}, line {number}: expected {{"id": …, "answer": "text"}}, found {line[:80]}')
    return str(row["id"]), row["answer"]


def _check_ids(path: Path, ids: Sequence[str], answers: Iterable[str]) -> None:
    asked, given = set(ids), set(answers)
    missing, unknown = [key for key in ids if key not in given], sorted(given - asked)
    if missing or unknown:
        told = [f"{len(missing):,} questions have no answer ({', '.join(missing[:SHOWN])}{' …' * (len(missing) > SHOWN)})"] * bool(missing)
        told += [f"{len(unknown):,} answers are to no question ({', '.join(unknown[:SHOWN])}{' …' * (len(unknown) > SHOWN)})"] * bool(unknown)
        raise DataError(f"{path} has {len(given):,} answers to {len(asked):,} questions: {', and '.join(told)}. A score over a part would "
                        "be no score of the benchmark; for a part ask with eval.limit=N and score with the same")


def write_answers(path: Path, answered: Iterable[Answered]) -> None:
    """One row a question: id, answer, extracted, score, truths, category, and why it was not put or failed."""
    with path.open("w", encoding="utf-8") as file:
        for one in answered:
            row = {"id": one.question.id, "answer": one.text, "extracted": one.mark.extracted, "score": one.mark.score,
                   "truths": list(one.question.truths)}
            more = {"category": one.question.category, "note": one.mark.note, "refused": one.refused}
            file.write(json.dumps({**row, **{name: value for name, value in more.items() if value}}, ensure_ascii=False) + "\n")
