"""CIDEr-D, the measure of COCO captions: how much a caption's runs of words agree with those of five people's.

Source: Vedantam et al., arXiv:1411.5726, section 4 and its appendix on CIDEr-D; tylin/coco-caption, `cider/cider_scorer.py`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from nvlm_train.evaluation.scorers.mark import Mark
from nvlm_train.evaluation.scorers.ptb_words import words_of

RUNS = 4            # runs of one to four words
SIGMA = 6.0         # words by which a caption may be longer or shorter before it costs: the width of a Gaussian
Run = tuple[str, ...]


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[Mark]:
    """A mark for every caption, 0 to 10; a set's score is their mean.

    references: of every caption what people wrote of the picture. How rare a run of words is follows from all of them, so the score
    of a part of a set is another one.
    """
    counted = [[_runs(words_of(reference)) for reference in group] for group in references]
    pictures_with = Counter(run for group in counted for run in {run for runs in group for run in runs})
    pictures = math.log(len(counted)) if counted else 0.0
    rarity = {run: pictures - math.log(count) for run, count in pictures_with.items()}
    marks = []
    for prediction, group in zip(predictions, counted, strict=True):
        words = words_of(prediction)
        runs = _runs(words)
        marks.append(Mark(_score(runs, group, rarity, pictures), " ".join(words)))
    return marks


def _runs(words: Sequence[str]) -> Counter[Run]:
    return Counter(tuple(words[i:i + size]) for size in range(1, RUNS + 1) for i in range(len(words) - size + 1))


def _score(runs: Counter[Run], group: Sequence[Counter[Run]], rarity: Mapping[Run, float], unseen: float) -> float:
    """10 times the mean over sizes of runs and references. unseen: rarity of a run that no reference has."""
    said = _weighed(runs, rarity, unseen)
    total = 0.0
    for reference in group:
        written = _weighed(reference, rarity, unseen)
        # The public script measures length in runs of two words.
        apart = _pairs(runs) - _pairs(reference)
        penalty = math.exp(-apart**2 / (2 * SIGMA**2))
        total += penalty * sum(map(_likeness, said, written)) / RUNS
    return 10 * total / len(group)


def _weighed(runs: Counter[Run], rarity: Mapping[Run, float], unseen: float) -> list[dict[Run, float]]:
    """Of each size its runs, weighed by how often they occur and how rare they are."""
    sizes: list[dict[Run, float]] = [{} for _ in range(RUNS)]
    for run, count in runs.items():
        sizes[len(run) - 1][run] = count * rarity.get(run, unseen)
    return sizes


def _pairs(runs: Counter[Run]) -> int:
    return sum(count for run, count in runs.items() if len(run) == 2)


def _likeness(said: Mapping[Run, float], written: Mapping[Run, float]) -> float:
    """Cosine of two sets of weighed runs, saying one more often than the reference does gaining nothing."""
    shared = sum(min(weight, written[run]) * written[run] for run, weight in said.items() if run in written)
    sizes = _length(said) * _length(written)
    return shared / sizes if sizes else 0.0


def _length(weights: Mapping[Run, float]) -> float:
    return math.sqrt(sum(weight * weight for weight in weights.values()))
