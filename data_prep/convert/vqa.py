"""VQA v2: a file of questions, and one of annotations with ten answers each (https://visualqa.org/download.html). OK-VQA is alike."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar, Literal

from data_prep.convert import files
from data_prep.convert.base import Converter, Paths, outcome
from data_prep.convert.fields import answers, commonest, filled, required_text
from data_prep.convert.keys import key_of
from data_prep.convert.tables import Listed, Table
from data_prep.convert.turns import exchange
from data_prep.passes import Outcome, Rejected
from data_prep.prompts import prompt
from nvlm_train.contracts import Sample
from nvlm_train.errors import DataError, SampleRefused


@dataclass(frozen=True, kw_only=True)
class Vqa(Converter):
    """Questions with short answers; trained is `multiple_choice_answer`, or, where it is absent (OK-VQA), the commonest of the ten.

    questions, annotations: the JSON files. images: folders of pictures. image: a picture's name from the question's fields and the
    file's `data_subtype`. turns: `joined` makes one conversation of all questions of an image, `single` a sample of each.
    """

    TASK: ClassVar[str] = "vqa"

    questions: str
    annotations: str
    images: Paths = (".",)
    image: str = "COCO_{data_subtype}_{image_id:012d}.jpg"
    turns: Literal["joined", "single"] = "joined"

    def tables(self) -> list[Table]:
        paths = [files.find_one(self.root, name) for name in (self.questions, self.annotations)]
        return [Listed(paths[0], partial(_by_image, *paths, *map(files.signature, paths)), tuple(paths))]

    def key(self, table: Table, number: int, record: Mapping | None) -> str:
        return key_of(self.name, record["image_id"])

    def convert(self, key: str, record: Mapping) -> Iterator[Outcome]:
        asked = []
        for question in record["questions"]:
            own = key_of(key, question["question_id"])
            try:
                asked.append(_asked(own, question))
            except SampleRefused as refusal:
                yield Rejected(own, refusal.reason, refusal.detail)
        for annotation in record["strays"]:
            yield Rejected(key_of(key, annotation.get("question_id")), "unknown_question", "an annotation of a question that is not listed")
        if asked and self.turns == "joined":
            yield outcome(key, lambda: self._sample(key, record, asked))
        elif asked:
            for one in asked:
                yield outcome(one.key, lambda one=one: self._sample(one.key, record, [one]))

    def _sample(self, key: str, record: Mapping, asked: Sequence["Asked"]) -> Sample:
        picture = files.read_image(self.root, self.images, filled(self.image, {**record, **asked[0].question}))
        return self.sample(key, [picture], exchange([one.pair for one in asked]), image_id=record["image_id"],
                           question_id=asked[-1].question["question_id"], answers=asked[-1].answers)


@dataclass(frozen=True)
class Asked:
    """A question that can be used. key: of its sample, if it has one of its own. pair: what is asked, and the trained answer."""

    key: str
    question: Mapping
    pair: tuple[str, str]
    answers: list[str]


def _asked(key: str, question: Mapping) -> Asked:
    """Raises SampleRefused: no_annotation, missing_field, empty_text, bad_field."""
    annotation = question["annotation"]
    if annotation is None:
        raise SampleRefused("no_annotation", f"the question {question['question_id']} is not in the annotations")
    if annotation.get("answers") is None:
        given = [required_text(annotation, "multiple_choice_answer")]
    else:
        given = answers(annotation["answers"])
    trained = required_text(annotation, "multiple_choice_answer") if "multiple_choice_answer" in annotation else commonest(given)
    asked = prompt("vqa", key, question=required_text(question, "question"))
    return Asked(key, question, (asked, trained), given)


@lru_cache(maxsize=1)
def _by_image(questions: Path, annotations: Path, *signatures: tuple[int, int]) -> tuple[Mapping, ...]:
    """{image_id, data_subtype, questions (each with its annotation or None), strays} of every image, in the questions' order."""
    asked, answered = files.load_json(questions), files.load_json(annotations)
    try:
        by_question = {annotation["question_id"]: annotation for annotation in answered["annotations"]}
        subtype = asked.get("data_subtype", "")
        images: dict = {}
        for question in asked["questions"]:
            image = images.setdefault(question["image_id"], {"questions": [], "strays": []})
            image["questions"].append({**question, "annotation": by_question.pop(question["question_id"], None)})
        for annotation in by_question.values():
            images.setdefault(annotation["image_id"], {"questions": [], "strays": []})["strays"].append(annotation)
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{questions} and {annotations} are not VQA's form ({error!r}): `questions` of question_id, image_id, question, "
                        "and `annotations` of question_id, answers") from error
    return tuple({"image_id": number, "data_subtype": subtype, **image} for number, image in images.items())
