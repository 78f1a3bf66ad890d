"""GSM8K: the last number of the answer.

Source: EleutherAI/lm-evaluation-harness, task `gsm8k`, filter `flexible-extract`; Cobbe et al., arXiv:2110.14168.
"""

import re
from collections.abc import Sequence

from nvlm_train.evaluation.scorers.mark import Mark, right_or_wrong

_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_FRAME = (",", r"\$", r"(?s).*#### ", r"\.$")      # what the harness takes off both sides before it compares, one after the other


def gsm8k(prediction: str, truths: Sequence[str]) -> Mark:
    """Right if the last number written is the true one, `,` and `$` and a full stop aside. 18.00 is not 18, as in the public score.

    truths: what stands behind `####`.
    """
    numbers = _NUMBER.findall(prediction)
    if not numbers:
        return right_or_wrong(False, None)
    found = numbers[-1]
    return right_or_wrong(any(_bare(found) == _bare(truth) for truth in truths), found)


def _bare(text: str) -> str:
    for part in _FRAME:
        text = re.sub(part, "", text)
    return text.lower()
