"""Relaxed accuracy, the measure of ChartQA: numbers may be off by a share, anything else must match.

Source: Masry et al., arXiv:2203.10244, end of section 5.1; the rules for percentages as in google-research/pix2struct, `metrics.py`.
"""

from collections.abc import Sequence

from nvlm_train.evaluation.scorers.mark import Mark, right_or_wrong


def relaxed(prediction: str, truths: Sequence[str], tolerance: float = 0.05) -> Mark:
    """Right if it is within `tolerance` (a share of the truth) of one of the truths, or the same text, capitals aside.

    `12%` is 0.12, in the prediction and in the truth alike, so 12 is not 12%. A truth of 0 has no share: there the text decides.
    """
    said = prediction.strip()
    return right_or_wrong(any(_matches(said, truth, tolerance) for truth in truths), said)


def _matches(said: str, truth: str, tolerance: float) -> bool:
    number, wanted = _number(said), _number(truth)
    if number is None or not wanted:
        return said.lower() == truth.lower()
    return abs(number - wanted) / abs(wanted) <= tolerance


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
