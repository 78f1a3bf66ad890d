"""95 % intervals of an accuracy: over seeds where there are enough of them, else over the questions."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

ENOUGH_SEEDS = 3
WILSON, STUDENT = "wilson", "student_t"
_Z = statistics.NormalDist().inv_cdf(0.975)
# Student's t at 0.975 for 2, 3, … 20 degrees of freedom; more seeds than 21 get the last one, which is a little too wide.
_T = (4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199,
      2.1098, 2.1009, 2.0930, 2.0860)


@dataclass(frozen=True)
class Interval:
    """low to high, 0 to 1. method: `student_t` (what another seed would do) or `wilson` (what other questions would)."""

    low: float
    high: float
    method: str


def interval(accuracies: Sequence[float], questions: int) -> Interval:
    """Of the mean accuracy of one design. accuracies: one a seed, at least one, each over the same `questions`.

    With three seeds or more Student's t over the seeds; with fewer Wilson's interval for so many questions: seeds that answer the
    same questions are no more questions.
    """
    if len(accuracies) >= ENOUGH_SEEDS:
        return student_t(accuracies)
    return wilson(statistics.mean(accuracies), questions)


def wilson(share: float, count: int) -> Interval:
    """Wilson's score interval of `share` right ones among `count` (E. B. Wilson, 1927). Raises ValueError without any."""
    if count < 1:
        raise ValueError("an interval needs at least one question")
    z2 = _Z * _Z / count
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count)) / (1 + z2)
    return Interval(max(0.0, middle - half), min(1.0, middle + half), WILSON)


def student_t(values: Sequence[float], least: float = 0.0, most: float = 1.0) -> Interval:
    """Of the mean of at least three values; cut off at `least` and `most`."""
    mean = statistics.mean(values)
    half = _T[min(len(values) - 3, len(_T) - 1)] * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(max(least, mean - half), min(most, mean + half), STUDENT)


def paired(values: Sequence[float], others: Sequence[float]) -> Interval | None:
    """Of the mean of values less others, which belong together one by one; None for fewer than three pairs.

    Designs trained under the same seed saw the same samples: what the seed does to both drops out, so this is narrower than two
    intervals laid side by side.
    """
    if len(values) < ENOUGH_SEEDS:
        return None
    return student_t([value - other for value, other in zip(values, others, strict=True)], -1.0, 1.0)
