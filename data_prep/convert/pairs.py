"""Questions and answers out of a record's fields, with the wording of a style."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_prep.convert.fields import answers, commonest, required, text
from data_prep.prompts import prompt
from nvlm_train.errors import SampleRefused

Style = Literal["vqa", "chart", "document", "open", "captioning", "transcription", "latex", "rendered"]
UNASKED = ("captioning", "transcription", "latex", "rendered")
"""Styles whose instruction needs no question: the answer field alone is read."""


@dataclass(frozen=True)
class Pair:
    """One question as it will be asked, the answer to learn, and all accepted answers."""

    asked: str
    trained: str
    answers: tuple[str, ...]


def pairs_of(key: str, record: Mapping, question: str, answer: str, style: str, words: Sequence[str] = ()) -> list[Pair]:
    """The record's one pair, or several where both fields hold lists of equal length.

    words: `0=No` and the like, what an answer stands for. Of several answers to one question the commonest is trained.
    Raises SampleRefused: missing_field, empty_text, bad_field.
    """
    said = required(record, answer)
    if style in UNASKED:
        return [_pair(key, style, None, said, words)]
    asked = required(record, question)
    if not isinstance(asked, (list, tuple)):
        return [_pair(key, style, asked, said, words)]
    if not isinstance(said, (list, tuple)) or len(asked) != len(said) or not asked:
        count = len(said) if isinstance(said, (list, tuple)) else "no list of"
        raise SampleRefused("bad_field", f"{len(asked)} in {question}, {count} in {answer}")
    return [_pair(f"{key}/{place}", style, *both, words) for place, both in enumerate(zip(asked, said, strict=True))]


def _pair(key: str, style: str, asked: Any, said: Any, words: Sequence[str]) -> Pair:
    means = dict(word.split("=", 1) for word in words)
    given = tuple(means.get(one, one) for one in answers(said))
    filled = {} if asked is None else {"question": text(asked, "the question")}
    return Pair(prompt(style, key, **filled), commonest(given), given)
