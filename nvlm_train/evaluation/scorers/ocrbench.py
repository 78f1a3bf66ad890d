"""OCRBench: the accepted text must stand somewhere in the answer. The public score is the sum over its 1,000 questions.

Source: Liu et al., arXiv:2305.07895; Yuliang-Liu/MultimodalOCR, `OCRBench/example.py`.
"""

from collections.abc import Sequence

from nvlm_train.evaluation.scorers.mark import Mark, right_or_wrong

FORMULAS = "HME100k"    # of this part spaces do not count and capitals do: LaTeX


def ocrbench(prediction: str, truths: Sequence[str], dataset: str) -> Mark:
    """Right if one of the truths is contained. dataset: the part of OCRBench that the question is from."""
    said = _plain(prediction, dataset)
    return right_or_wrong(any(_plain(truth, dataset) in said for truth in truths), prediction.strip())


def _plain(text: str, dataset: str) -> str:
    text = text.strip().replace("\n", " ")
    return text.replace(" ", "") if dataset == FORMULAS else text.lower()
