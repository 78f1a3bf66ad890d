"""VQA accuracy: VQAv2 and TextVQA. Ten people answered; three who agree with the model make it right.

Source: Antol et al., arXiv:1505.00468; for VQAv2 GT-Vision-Lab/VQA, `PythonEvaluationTools/vqaEvaluation/vqaEval.py`, as open_flamingo
(which NVLM's public evaluation calls) and lmms-eval have it: the truths are cleaned as the answer is. For TextVQA facebookresearch/mmf,
`EvalAIAnswerProcessor`.
"""

import re
from collections.abc import Sequence

from nvlm_train.evaluation.scorers.contractions import CONTRACTIONS
from nvlm_train.evaluation.scorers.mark import Mark

_MARKS = ";/[]\"{}()=+\\_-><@`,?!"
_THOUSANDS = re.compile(r"\d,+\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_STOPS = 32         # the public scripts pass re.UNICODE, which is 32, where the number of replacements goes
_ARTICLES = ("a", "an", "the")
_NUMBERS = {word: str(value) for value, word in enumerate(
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))} | {"none": "0"}


def vqa_v2(prediction: str, truths: Sequence[str]) -> Mark:
    """Score of VQAv2's script."""
    said, *cleaned = (words_cleaned(punctuation_cleaned(_one_line(text))) for text in (prediction, *truths))
    return Mark(_agreement(said, cleaned), said)


def textvqa(prediction: str, truths: Sequence[str]) -> Mark:
    """Score of TextVQA's script, which cleans a little more."""
    said = answer_cleaned(prediction)
    return Mark(_agreement(said, [answer_cleaned(truth) for truth in truths]), said)


def _agreement(said: str, truths: Sequence[str]) -> float:
    """Mean over each set of all truths but one of min(1, truths that agree / 3)."""
    agreeing = [truth == said for truth in truths]
    total = sum(agreeing)
    return sum(min(1.0, (total - agrees) / 3) for agrees in agreeing) / len(agreeing)


def answer_cleaned(text: str) -> str:
    """As TextVQA's script has it: commas and question marks go at once, and 's stands alone, before the rest is done."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return words_cleaned(punctuation_cleaned(_one_line(text)))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def punctuation_cleaned(text: str) -> str:
    """A mark becomes a space inside words and nothing beside a space; all go if a comma stands in a number. Full stops that end
    something go, decimal points stay."""
    cleaned, number = text, _THOUSANDS.search(text) is not None
    for mark in _MARKS:
        apart = number or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if apart else " ")
    return _FULL_STOP.sub("", cleaned, count=_STOPS)


def words_cleaned(text: str) -> str:
    """Lower case, numbers up to ten as digits, no articles, apostrophes where contractions lost theirs."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
