"""Text files: JSON lines (packed or not), a JSON file with a list, a folder of JSON files, CSV without a line of names."""

import csv
import io
from pathlib import Path

from nvlm_train.errors import DataError
from nvlm_train.evaluation.readers.files import found, json_of, only, text_of
from nvlm_train.evaluation.readers.records import Listed, Record, value_of


def json_lines(folder: Path, pattern: str) -> Listed:
    """A record a line: GSM8K, HumanEval. Raises DataError."""
    path = only(folder, pattern)
    lines = (line for line in text_of(path).split("\n") if line.strip())
    return Listed(str(path), [_record(json_of(line, f"{path}, line {number}"), path) for number, line in enumerate(lines, 1)])


def json_list(folder: Path, pattern: str, at: str = "", image: str = "") -> Listed:
    """The list of records in a JSON file: TextVQA. at: the field that holds it; image: a template of each record's picture.

    Raises DataError.
    """
    path = only(folder, pattern)
    value = json_of(text_of(path), path)
    if at:
        value = value_of(_record(value, path), at, str(path))
    if not isinstance(value, list):
        raise DataError(f"{path}: a list of records is needed, found a {type(value).__name__}")
    return Listed(str(path), [_record(record, path) for record in value], folder, image)


def json_folder(folder: Path, pattern: str) -> Listed:
    """A record a file, named by its folder and its own name: MATH. Its `_name` is `algebra/1`. Raises DataError."""
    records = []
    # Numbers ascend within a subject.
    for path in sorted(found(folder, pattern), key=lambda path: (path.parent.name, len(path.stem), path.stem)):
        records.append({**_record(json_of(text_of(path), path), path), "_name": f"{path.parent.name}/{path.stem}"})
    return Listed(f"{folder}/{pattern}", records)


def mmlu_csv(folder: Path, pattern: str, examples: str) -> Listed:
    """MMLU's CSV files: question, four options, letter. `_name` is SUBJECT/NUMBER, `_shots` the records of the subject's examples.

    Raises DataError: a row without six values, a subject without examples.
    """
    records = []
    for path in found(folder, pattern):
        subject = path.stem.removesuffix("_test")
        shots = _csv(only(folder, examples.format(subject=subject)))
        records += [{**row, "_name": f"{subject}/{number}", "_subject": subject.replace("_", " "), "_shots": shots}
                    for number, row in enumerate(_csv(path))]
    return Listed(f"{folder}/{pattern}", records)


def easy_vqa(folder: Path, pattern: str, image: str) -> Listed:
    """easy-vqa's list of [question, answer, picture's number]: records of question, answer, number, kind of answer. Raises DataError."""
    path = only(folder, pattern)
    rows = json_of(text_of(path), path)
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 3 for row in rows):
        raise DataError(f"{path}: a list of [question, answer, number of a picture] is needed")
    records = [{"question": question, "answer": answer, "number": number, "kind": "yes or no" if answer in ("yes", "no") else "name"}
               for question, answer, number in rows]
    return Listed(str(path), records, folder, image)


def _csv(path: Path) -> list[Record]:
    try:
        rows = list(csv.reader(io.StringIO(text_of(path), newline="")))
    except csv.Error as error:
        raise DataError(f"{path} is not CSV: {error}") from error
    for number, row in enumerate(rows, 1):
        if len(row) != 6:
            raise DataError(f"{path}, row {number}: {len(row)} values where a question, four options and a letter make 6")
    return [{"question": row[0], "choices": row[1:5], "answer": row[5]} for row in rows]


def _record(value: object, path: Path) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{path}: a record must be an object with fields, found {str(value)[:60]}")
    return value
