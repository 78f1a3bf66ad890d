"""Questions and answers in JSON, JSON lines or CSV, with the fields' names as options: DVQA, PlotQA, ChartQA, GQA, OCR-VQA, DocVQA …"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from data_prep.convert.base import Paths, RecordConverter, outcome
from data_prep.convert.fields import items_of
from data_prep.convert.keys import key_of
from data_prep.convert.pairs import Pair, Style, pairs_of
from data_prep.convert.turns import exchange
from data_prep.passes import Outcome, Rejected
from nvlm_train.contracts import Sample
from nvlm_train.errors import DataError, SampleRefused


@dataclass(frozen=True, kw_only=True)
class QaRecords(RecordConverter):
    """A prompt of the style with the question in it, and the answer.

    records: files or globs. images: folders of pictures. image: field of the picture's name, or a template of fields
    (`{image_index}.png`); empty: text only. question, answer: fields; an answer may be a list, of which the commonest is trained; both
    lists: a pair of each. items: field of a list of questions within a record (`qas`, `paragraphs/qas`, `questions.*`). turns:
    whether the pairs of one record are one conversation or a sample each. style: of the prompt. words: what answers stand for
    (`0=No,1=Yes`).
    """

    TASK: ClassVar[str] = "vqa"

    records: Paths
    images: Paths = (".",)
    image: str = "image"
    question: str = "question"
    answer: str = "answer"
    items: str = ""
    turns: Literal["joined", "single"] = "single"
    style: Style = "vqa"
    words: Paths = ()

    def check(self) -> None:
        super().check()
        if odd := [word for word in self.words if "=" not in word]:
            raise DataError(f"words are like 0=No,1=Yes; found {odd[0]!r}")

    def convert(self, key: str, record: Mapping) -> Iterator[Outcome]:
        items = items_of(record, self.items)
        if self.turns == "single" and self.items:
            for place, item in enumerate(items):
                own = key_of(key, place)
                yield outcome(own, lambda own=own, item=item: self._sample(own, item, self._pairs(own, item)))
            return
        pairs = []
        for place, item in enumerate(items):
            own = key_of(key, place) if self.items else key
            try:
                pairs += self._pairs(own, item)
            except SampleRefused as refusal:
                yield Rejected(own, refusal.reason, refusal.detail)
        if not pairs:
            return
        if self.turns == "joined" or len(pairs) == 1:
            yield outcome(key, lambda: self._sample(key, items[0], pairs))
            return
        for place, pair in enumerate(pairs):
            own = key_of(key, place)
            yield outcome(own, lambda own=own, pair=pair: self._sample(own, record, [pair]))

    def _pairs(self, key: str, item: Mapping) -> list[Pair]:
        return pairs_of(key, item, self.question, self.answer, self.style, self.words)

    def _sample(self, key: str, record: Mapping, pairs: list[Pair]) -> Sample:
        pictures = self.pictures(self.named(record, self.image)) if self.image else ()
        if self.image and not pictures:
            raise SampleRefused("missing_image", f"the field {self.image} is empty")
        turns = exchange([(pair.asked, pair.trained) for pair in pairs])
        return self.sample(key, pictures, turns, answers=list(pairs[-1].answers))
