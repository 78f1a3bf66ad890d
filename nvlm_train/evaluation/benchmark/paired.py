"""What changed between two answers to the same questions."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from nvlm_train.evaluation.benchmark.results import Z

_PAIRS = 2      # pseudo-pairs of Agresti and Min: half a pair in each of the four cells


@dataclass(frozen=True)
class Difference:
    """mean: of new less old marks, question by question. low, high: its 95% interval. count: questions."""

    mean: float
    low: float
    high: float
    count: int


def difference(new: Sequence[float], old: Sequence[float]) -> Difference:
    """Of marks that belong together one by one. Raises ValueError for none, or for unequally many.

    Where every mark is 0 or 1, the interval of Agresti and Min (Statistics in Medicine 24, 2005, 729-740): Wald's after half a pair is
    added to each of the four cells, which keeps its promise where few questions, or none, changed. Else mean and standard error.
    """
    changes = [after - before for after, before in zip(new, old, strict=True)]
    if not changes:
        raise ValueError("no question to compare")
    count, mean = len(changes), statistics.fmean(changes)
    if set(new) | set(old) <= {0.0, 1.0}:
        better, worse = changes.count(1.0) + _PAIRS / 4, changes.count(-1.0) + _PAIRS / 4
        total = count + _PAIRS
        middle = (better - worse) / total
        half = Z * math.sqrt(better + worse - (better - worse) ** 2 / total) / total
        return Difference(mean, max(-1.0, middle - half), min(1.0, middle + half), count)
    half = Z * statistics.stdev(changes) / math.sqrt(count) if count > 1 else math.inf
    return Difference(mean, mean - half, mean + half, count)
