"""Multiple choice: AI2D, MMLU, RealWorldQA.

Source: VLMEvalKit (whose settings the NVLM paper uses for AI2D), `vlmeval/utils/matching_util.py` of autumn 2024, `can_infer`, in its
exact-matching mode: what the rules leave open is wrong here, where that toolkit would ask a language model.
"""

import string
from collections.abc import Sequence

from nvlm_train.evaluation.scorers.mark import Mark, right_or_wrong

_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def letter_of(prediction: str, choices: Sequence[str]) -> str | None:
    """The option that an answer names: the one letter that stands alone in it, else the one option whose text it contains.

    None if there is none or more than one.
    """
    letters = string.ascii_uppercase[:len(choices)]
    words = set(prediction.translate(_BLANKS).split())
    named = [letter for letter in letters if letter in words]
    if len(named) == 1:
        return named[0]
    if not named and "Z" in words:      # the toolkit's way to say that no option fits
        return None
    said = prediction.lower()
    told = [letter for letter, text in zip(letters, choices, strict=True) if text.lower() in said]
    return told[0] if len(told) == 1 else None


def letter(prediction: str, truths: Sequence[str], choices: Sequence[str]) -> Mark:
    """Right if the option that the answer names is the true one. truths: one letter."""
    found = letter_of(prediction, choices)
    return right_or_wrong(found is not None and found in truths, found)


def letter_or_exact(prediction: str, truths: Sequence[str], choices: Sequence[str]) -> Mark:
    """RealWorldQA (x.ai, April 2024, no public scorer): as `letter` where there are options, else the same text, capitals and a full
    stop behind it aside."""
    if choices:
        return letter(prediction, truths, choices)
    said = prediction.lower().strip().rstrip(".")
    return right_or_wrong(any(said == truth.lower().strip() for truth in truths), said)
