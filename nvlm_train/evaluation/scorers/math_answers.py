"""MATH: whether two answers are the same after the public normalisation, which is about notation and never computes.

Source: Hendrycks et al., arXiv:2103.03874; hendrycks/math, `modeling/math_equivalence.py`.
"""

import re
from collections.abc import Sequence

from nvlm_train.evaluation.scorers.boxed import last_boxed
from nvlm_train.evaluation.scorers.mark import Mark, right_or_wrong

_DROPPED = ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$")
_RATIO = re.compile(r"(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)")


def math_equal(prediction: str, truths: Sequence[str]) -> Mark:
    """Right if what the answer puts in a box, or between its first and last `$`, or all of it, is one of the truths in notation."""
    found = answer_in(prediction)
    return right_or_wrong(any(equivalent(found, truth) for truth in truths), found)


def answer_in(text: str) -> str:
    """The answer within a written solution. The box comes first: it is what the prompt asks for, and what MATH's own solutions have."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    start, end = text.find("$"), text.rfind("$")
    return text[start + 1:end] if start < end else text


def equivalent(one: str, other: str) -> bool:
    """Whether both normalise to the same text. One that cannot be normalised makes the texts themselves decide."""
    try:
        return normalised(one) == normalised(other)
    except ValueError:
        return one == other


def normalised(text: str) -> str:
    """An answer in one notation: without units, degrees, signs of money and share, spaces, `x =`; fractions and roots in braces.

    Raises ValueError for a fraction or root that lacks its parts, or units given twice.
    """
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    for part in _DROPPED:
        text = text.replace(part, "")
    text = _without_unit(text).replace("\\%", "").replace("%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text[0] == ".":
        text = f"0{text}"
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:      # k = 5
        text = sides[1]
    text = _braced_fractions(_braced_roots(text).replace(" ", ""))
    if text == "0.5":
        return "\\frac{1}{2}"
    ratio = _RATIO.fullmatch(text)
    return f"\\frac{{{ratio[1]}}}{{{ratio[2]}}}" if ratio else text


def _without_unit(text: str) -> str:
    before, *units = text.split("\\text{ ")     # in MATH only units begin with a space
    if len(units) > 1:
        raise ValueError("several units")
    return before


def _braced_roots(text: str) -> str:
    before, *roots = text.split("\\sqrt")
    if not all(roots):
        raise ValueError("a root of nothing")
    return before + "".join(f"\\sqrt{root}" if root[0] == "{" else f"\\sqrt{{{root[0]}}}{root[1:]}" for root in roots)


def _braced_fractions(text: str) -> str:
    """\\frac12 and \\frac1{72} as \\frac{1}{2} and \\frac{1}{72}; \\frac{72}1 stays. A fraction of one character leaves all as it was."""
    before, *fractions = text.split("\\frac")
    done = before
    for fraction in fractions:
        if not fraction:
            raise ValueError("a fraction of nothing")
        if fraction[0] == "{":
            done += f"\\frac{fraction}"
        elif len(fraction) < 2:
            return text
        elif fraction[1] == "{":
            done += f"\\frac{{{fraction[0]}}}{fraction[1:]}"
        else:
            done += f"\\frac{{{fraction[0]}}}{{{fraction[1]}}}{fraction[2:]}"
    return done
