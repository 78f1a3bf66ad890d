"""What a benchmark comes to: a score with its interval, of all questions and of each category."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from nvlm_train.config.benchmark import Benchmark
from nvlm_train.evaluation.benchmark.questions import Question
from nvlm_train.evaluation.scorers.mark import Mark

Z = 1.959964        # of a normal distribution 95% lie within so many standard deviations


@dataclass(frozen=True)
class Share:
    """score: mean of `count` marks. low, high: where it would lie in 95 of 100 repetitions with as many other questions of the kind."""

    score: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Result:
    """unanswered: questions that could not be put, each of which counts 0. points: `score` as it is published."""

    benchmark: str
    scorer: str
    overall: Share
    points: float
    unanswered: int
    by_category: dict[str, Share] = field(default_factory=dict)

    def as_json(self) -> dict:
        """Flat: score, low, high, count beside the rest."""
        tree = asdict(self)
        return {**{name: value for name, value in tree.items() if name != "overall"}, **tree["overall"]}


@dataclass(frozen=True)
class Answered:
    """A question (without its pictures), what was written, and its mark. refused: why it could not be put, if so."""

    question: Question
    text: str
    mark: Mark
    refused: str | None = None


def result_of(benchmark: Benchmark, answered: Sequence[Answered]) -> Result:
    """Raises ValueError if nothing was answered."""
    overall = share([one.mark.score for one in answered])
    groups: dict[str, list[float]] = {}
    for one in answered:
        if one.question.category:
            groups.setdefault(one.question.category, []).append(one.mark.score)
    return Result(benchmark.name, benchmark.scorer, overall, overall.score * benchmark.points,
                  sum(one.refused is not None for one in answered), {name: share(marks) for name, marks in sorted(groups.items())})


def share(marks: Sequence[float]) -> Share:
    """Mean and its 95% interval: Wilson's where every mark is 0 or 1, else mean and standard error, not below 0.

    Raises ValueError for no marks.
    """
    if not marks:
        raise ValueError("no answer to score")
    count, mean = len(marks), statistics.fmean(marks)
    if set(marks) <= {0.0, 1.0}:
        middle, width = (mean + Z * Z / (2 * count)) / (1 + Z * Z / count), Z / (1 + Z * Z / count) * math.sqrt(
            mean * (1 - mean) / count + Z * Z / (4 * count * count))
        return Share(mean, max(middle - width, 0.0), min(middle + width, 1.0), count)
    error = Z * statistics.stdev(marks) / math.sqrt(count) if count > 1 else 0.0
    return Share(mean, max(mean - error, 0.0), mean + error, count)
