"""ANLS, the measure of DocVQA: how near an answer comes to the nearest of the accepted ones, by edit distance.

Source: Biten et al., arXiv:1905.13648, and the evaluation script of the Robust Reading Competition (rrc.cvc.uab.es, challenge 17).
"""

from collections.abc import Sequence

from nvlm_train.evaluation.scorers.mark import Mark


def anls(prediction: str, truths: Sequence[str], threshold: float = 0.5) -> Mark:
    """1 - (edit distance / length of the longer), of the best truth; 0 below `threshold`.

    As in the public script, texts are compared in lower case with single spaces, but the lengths are those of the texts as they
    came. Exactly `threshold` counts.
    """
    said = " ".join(prediction.lower().split())
    best = max(_similarity(said, " ".join(truth.lower().split()), max(len(truth.upper()), len(prediction.upper())))
               for truth in truths)
    return Mark(best if best >= threshold else 0.0, said)


def _similarity(said: str, truth: str, length: int) -> float:
    return 1.0 if length == 0 else 1 - edit_distance(said, truth) / length


def edit_distance(one: str, other: str) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions of a character."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]
