"""Scores of short answers: exact match after normalisation, and what guessing the commonest answer would give."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_ARTICLES = re.compile(r"^(a|an|the)\s+")


@dataclass(frozen=True)
class Score:
    """Accuracy (0 to 1) over `count` questions, and that of always answering `majority`, the commonest truth."""

    accuracy: float
    count: int
    majority: str
    majority_accuracy: float


def normalise(text: str) -> str:
    """Lower case, one space between words, no article in front, no full stop behind."""
    text = " ".join(text.lower().split()).rstrip(".").rstrip()
    return _ARTICLES.sub("", text)


def is_correct(answer: str, truths: Sequence[str]) -> bool:
    """Whether the answer is one of the accepted ones."""
    return normalise(answer) in {normalise(truth) for truth in truths}


def score(results: Sequence[tuple[bool, Sequence[str]]]) -> Score:
    """Score of (correct, accepted answers) pairs. Raises ValueError if there is none."""
    if not results:
        raise ValueError("no question to score")
    truths = Counter(normalise(accepted[0]) for _, accepted in results)
    majority = max(sorted(truths), key=lambda truth: truths[truth])
    hits = sum(is_correct(majority, accepted) for _, accepted in results)
    return Score(sum(correct for correct, _ in results) / len(results), len(results), majority, hits / len(results))
