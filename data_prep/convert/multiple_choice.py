"""Questions with choices: ScienceQA https://github.com/lupantech/ScienceQA, A-OKVQA https://github.com/allenai/aokvqa, AI2D."""

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from data_prep.convert.base import Paths, RecordConverter, outcome
from data_prep.convert.fields import items_of, lookup, required, required_text, text
from data_prep.convert.keys import key_of
from data_prep.convert.turns import exchange
from data_prep.passes import Outcome
from data_prep.prompts import prompt
from nvlm_train.contracts import Sample
from nvlm_train.errors import SampleRefused

LETTERS = string.ascii_uppercase


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(RecordConverter):
    """The question, its choices `A. …`, a request for the letter; and the letter.

    records, images, image, question, items: as in qa_records; a record without a picture is a text-only row. choices: field of the list.
    answer: field of the right one's number (counted from `first`), letter, or text. context: fields that stand before the question
    if they are not empty (ScienceQA's `hint`, `lecture`).
    """

    TASK: ClassVar[str] = "multiple_choice"

    records: Paths
    images: Paths = (".",)
    image: str = "image"
    question: str = "question"
    choices: str = "choices"
    answer: str = "answer"
    context: Paths = ()
    items: str = ""
    first: int = 0

    def convert(self, key: str, record: Mapping) -> Iterator[Outcome]:
        if not self.items:
            yield outcome(key, lambda: self._sample(key, record))
            return
        for place, item in enumerate(items_of(record, self.items)):
            own = key_of(key, place)
            yield outcome(own, lambda own=own, item=item: self._sample(own, item))

    def _sample(self, key: str, record: Mapping) -> Sample:
        choices = _choices(required(record, self.choices))
        right = self._right(required(record, self.answer), choices)
        given = [text(lookup(record, field), field) for field in self.context if str(lookup(record, field) or "").strip()]
        question = "\n".join([*given, required_text(record, self.question)])
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
        pictures = self.pictures(self.named(record, self.image)) if self.image else ()
        pairs = [(prompt("multiple_choice", key, question=question, choices=listed), LETTERS[right])]
        return self.sample(key, pictures, exchange(pairs), answers=[LETTERS[right]], choices=choices)

    def _right(self, answer: Any, choices: list[str]) -> int:
        """The place of the right choice. Raises SampleRefused("bad_answer")."""
        said = text(answer, "the answer")
        number = int(said) - self.first if said.lstrip("-").isdecimal() else None
        letter = said.strip("(). ").upper()
        if said in choices:
            number = choices.index(said) if number is None else number
        elif number is None and len(letter) == 1 and letter in LETTERS:
            number = LETTERS.index(letter)
        if number is None or not 0 <= number < len(choices):
            raise SampleRefused("bad_answer", f"{said[:80]!r} names none of {len(choices)} choices (numbers count from {self.first})")
        return number


def _choices(value: Any) -> list[str]:
    """Raises SampleRefused: bad_choices, empty_text."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (list, tuple)) or not 2 <= len(value) <= len(LETTERS):
        raise SampleRefused("bad_choices", f"a list of 2 to {len(LETTERS)} choices is needed, found {str(value)[:80]}")
    choices = [" ".join(text(choice, "a choice").split()) for choice in value]
    if len(set(choices)) < len(choices):
        raise SampleRefused("bad_choices", f"two choices are alike: {str(choices)[:120]}")
    return choices
