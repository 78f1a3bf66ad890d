"""What the package `easy_vqa` knows about its pictures, gathered per picture.

Each 64x64 picture holds one shape of one colour; about ten questions name what is there and what is not. The package ships no
captions, so colour and shape are taken from answers that state them: "what color is the shape?" directly, and "is there a blue
shape?" when the answer is yes (or "is there not ...?" when it is no).
"""

import re
from dataclasses import dataclass
from pathlib import Path

from data_prep.phrases import COLORS, SHAPES

NEGATION = re.compile(r"\b(not|no)\b")


@dataclass(frozen=True)
class Picture:
    """One picture of the package. color and shape are None where no question tells."""

    number: int
    path: Path
    questions: tuple[tuple[str, str], ...]
    color: str | None
    shape: str | None


def pictures(split: str) -> list[Picture]:
    """All pictures of the `train` or `test` split, by number, each with its questions and answers in the package's order."""
    import easy_vqa

    texts, answers, numbers = getattr(easy_vqa, f"get_{split}_questions")()
    paths = getattr(easy_vqa, f"get_{split}_image_paths")()
    asked: dict[int, list[tuple[str, str]]] = {}
    for text, answer, number in zip(texts, answers, numbers):
        asked.setdefault(number, []).append((text, answer))
    return [
        Picture(number, Path(paths[number]), tuple(asked[number]), stated(asked[number], COLORS), stated(asked[number], SHAPES))
        for number in sorted(asked)
    ]


def stated(questions: list[tuple[str, str]], values) -> str | None:
    """The one of `values` (colours, or shapes) that the answers say the picture has; None if they do not say."""
    for question, answer in questions:
        if answer in values:
            return answer
        named = [value for value in values if re.search(rf"\b{value}\b", question)]
        if not named:
            continue
        if answer not in ("yes", "no"):     # "what is the blue shape?" takes for granted that it is blue
            return named[0]
        if (answer == "yes") != bool(NEGATION.search(question)):
            return named[0]
    return None
