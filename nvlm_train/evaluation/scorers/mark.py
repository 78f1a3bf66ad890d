"""What a scorer says of one answer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """score: 0 to 1 (CIDEr-D alone: 0 to 10). extracted: the answer found in what the model wrote, None if there is none.

    note: why a program failed, for the predictions file.
    """

    score: float
    extracted: str | None
    note: str | None = None


def right_or_wrong(correct: bool, extracted: str | None, note: str | None = None) -> Mark:
    return Mark(float(correct), extracted, note)
