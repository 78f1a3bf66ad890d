"""Hugging Face datasets on disk: parquet files, or the arrow files that `save_to_disk` wrote. Read with pyarrow; nothing asks the hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from data_prep.convert.base import OneSample, Paths
from data_prep.convert.fields import required, required_text
from data_prep.convert.pairs import Style, pairs_of
from data_prep.convert.turns import conversation, exchange
from nvlm_train.contracts import Sample, Turn
from nvlm_train.errors import DataError, SampleRefused

FORMS = (("role", "content"), ("from", "value"))


@dataclass(frozen=True, kw_only=True)
class Parquet(OneSample):
    """One sample a row, with pictures of {bytes, path} or bytes.

    files: *.parquet or *.arrow. image, images: column of the picture, of the list of pictures (neither: text only). turns: column of a
    conversation, a list of {user, assistant} as The Cauldron and Docmatix have it, of {role, content} or of {from, value}. Without
    it, question and answer: columns, in the wording of `style`; some styles ask no question. words: as in qa_records.
    """

    FILES: ClassVar[str] = "files"
    TASK: ClassVar[str] = "vqa"

    files: Paths
    image: str = ""
    images: str = ""
    turns: str = ""
    question: str = "question"
    answer: str = "answer"
    style: Style = "vqa"
    words: Paths = ()

    def folders(self) -> Paths:
        return (".",)

    def check(self) -> None:
        if self.image and self.images:
            raise DataError(f"parquet: image={self.image} and images={self.images}: pictures come from one column, leave one out")
        super().check()

    def needed(self) -> list[str]:
        named = [self.id, self.image, self.images, *([self.turns] if self.turns else [self.question, self.answer])]
        return [name.partition(".")[0] for name in named if name]

    def made(self, key: str, record: Mapping) -> Sample:
        column = self.images or self.image
        pictures = self.pictures(required(record, column)) if column else ()
        if self.image and not pictures:
            raise SampleRefused("missing_image", f"the column {self.image} is empty")
        if self.turns:
            return self.sample(key, pictures, _conversation(required(record, self.turns)))
        pairs = pairs_of(key, record, self.question, self.answer, self.style, self.words)
        turns = exchange([(pair.asked, pair.trained) for pair in pairs])
        return self.sample(key, pictures, turns, answers=list(pairs[-1].answers))


def _conversation(turns: Any) -> Sequence[Turn]:
    """Turns of whichever of the three forms. Raises SampleRefused."""
    if not isinstance(turns, (list, tuple)) or not turns or not isinstance(turns[0], Mapping):
        raise SampleRefused("bad_field", f"a conversation is a list of objects, found {str(turns)[:80]}")
    if "user" in turns[0]:
        return [Turn(*said) for turn in turns
                for said in (("user", required_text(turn, "user")), ("assistant", required_text(turn, "assistant")))]
    for role, content in FORMS:
        if role in turns[0]:
            return conversation(turns, role, content)
    raise SampleRefused("bad_field", f"a turn has user and assistant, role and content, or from and value; found {', '.join(turns[0])}")
