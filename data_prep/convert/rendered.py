"""Text problems drawn as pictures, so that they have to be read: GSM8K, MetaMathQA, SQuAD."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from data_prep.convert.base import Paths, RecordConverter, outcome
from data_prep.convert.fields import answers, commonest, items_of, required, required_text
from data_prep.convert.keys import key_of
from data_prep.convert.page import page
from data_prep.convert.turns import exchange
from data_prep.passes import Outcome
from data_prep.prompts import prompt
from nvlm_train.contracts import Sample

SIZES = (18, 20, 22, 24, 28)
WIDTHS = (448, 640, 896)


@dataclass(frozen=True, kw_only=True)
class Rendered(RecordConverter):
    """A page with the question on it, a prompt that does not repeat it, and the answer.

    records, question, answer, items: as in qa_records. context: fields drawn above the question (SQuAD's passage). font: builtin or
    dejavu, which has mathematical signs. The key chooses the size of letters and page.
    """

    TASK: ClassVar[str] = "rendered"

    records: Paths
    question: str = "question"
    answer: str = "answer"
    context: Paths = ()
    items: str = ""
    font: Literal["builtin", "dejavu"] = "builtin"

    def convert(self, key: str, record: Mapping) -> Iterator[Outcome]:
        for place, item in enumerate(items_of(record, self.items)):
            own = key_of(key, place) if self.items else key
            yield outcome(own, lambda own=own, item=item: self._sample(own, item))

    def _sample(self, key: str, record: Mapping) -> Sample:
        drawn = "\n\n".join(required_text(record, field) for field in (*self.context, self.question))
        given = answers(required(record, self.answer))
        chance = random.Random(f"page/{key}")
        picture = page(drawn, chance.choice(WIDTHS), self.font, chance.choice(SIZES))
        turns = exchange([(prompt("rendered", key), commonest(given))])
        return self.sample(key, [picture], turns, answers=given, drawn=drawn)
