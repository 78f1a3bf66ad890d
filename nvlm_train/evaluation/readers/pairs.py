"""Questions in one JSON file and what people answered in another: VQAv2, and COCO's captions, whose question is always the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvlm_train.errors import DataError
from nvlm_train.evaluation.readers.files import json_of, only, text_of
from nvlm_train.evaluation.readers.records import Listed, value_of


def vqa_v2(folder: Path, questions: str, annotations: str, image: str) -> Listed:
    """Questions with their ten answers, joined by question_id. Raises DataError: ids of one file that the other has not, both numbers."""
    asked, answered = only(folder, questions), only(folder, annotations)
    by_id = _by_id(_list(asked, "questions"), asked)
    answers = _by_id(_list(answered, "annotations"), answered)
    if by_id.keys() != answers.keys():
        raise DataError(f"{asked.name} has {len(by_id):,} questions and {answered.name} answers to {len(answers):,}, "
                        f"{len(by_id.keys() - answers.keys()):,} questions have none, and {len(answers.keys() - by_id.keys()):,} answers "
                        "no question: the files are of different releases")
    records = [{**answers[key], **question, "answers": [value_of(answer, "answer", str(answered)) for answer in
                                                        value_of(answers[key], "answers", str(answered))]}
               for key, question in by_id.items()]
    return Listed(str(asked), records, folder, image)


def coco_captions(folder: Path, annotations: str, image: str) -> Listed:
    """Pictures with all their captions, by image_id, in the order of their first caption. Raises DataError."""
    path = only(folder, annotations)
    captions: dict[Any, list[str]] = {}
    for annotation in _list(path, "annotations"):
        captions.setdefault(value_of(annotation, "image_id", str(path)), []).append(str(value_of(annotation, "caption", str(path))))
    names = {value_of(picture, "id", str(path)): picture for picture in _list(path, "images")}
    if absent := captions.keys() - names.keys():
        raise DataError(f"{path}: captions of {len(captions):,} pictures, {len(absent):,} of which are not among its images, "
                        f"such as {next(iter(absent))}")
    records = [{"image_id": key, "captions": said, "_question": ""} for key, said in captions.items()]
    return Listed(str(path), records, folder, image)


def _list(path: Path, name: str) -> list[Mapping]:
    value = json_of(text_of(path), path)
    records = value_of(value, name, str(path)) if isinstance(value, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f"{path}: an object with a list of records called {name!r} is needed")
    return records


def _by_id(records: list[Mapping], path: Path) -> dict[Any, Mapping]:
    found = {value_of(record, "question_id", str(path)): record for record in records}
    if len(found) != len(records):
        raise DataError(f"{path}: {len(records):,} records with {len(found):,} different question_ids")
    return found
