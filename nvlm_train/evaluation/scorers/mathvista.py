"""MathVista without a judge.

Source: Lu et al., arXiv:2310.02255; lupantech/MathVista, `evaluation/extract_answer.py` and `calculate_score.py`. There a language
model (GPT-4) finds the answer in whatever the rules leave open. Here more rules do, as in NVLM's public evaluation, which has no judge
either; what follows, bringing the found answer into its form and comparing, is the public script's.
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase

from nvlm_train.evaluation.scorers.anls import edit_distance
from nvlm_train.evaluation.scorers.boxed import last_boxed
from nvlm_train.evaluation.scorers.mark import Mark, right_or_wrong

_QUOTED = re.compile(r'The answer is "(.*)"\.')
_TOLD = re.compile(r"(?:answer(?: is|:)|=|\bis\b)\s*(\S.*)", re.IGNORECASE)
_LETTER = re.compile(r"\(([A-Za-z])\)")
_ALONE = re.compile(r"(?<![A-Za-z'])([A-Z])(?![A-Za-z'])")
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+|\.\d+|\d+)(?:[eE][+-]?\d+)?")
_LIST = re.compile(r"\[[^\[\]]*\]")
_LONG = 200     # characters beyond which no option's text is near: edit distance is quadratic


def mathvista(prediction: str, truths: Sequence[str], choices: Sequence[str], answer_type: str, precision: int) -> Mark:
    """Right if the answer found is the true one, in the form that `answer_type` (text, integer, float, list) asks for.

    precision: decimals of a float. choices: texts; the truth is one of them.
    """
    found = extracted(prediction.strip(), choices, answer_type)
    said = normalised(found, choices, answer_type, precision)
    return right_or_wrong(said is not None and any(said.strip() == truth.strip() for truth in truths), said)


def extracted(response: str, choices: Sequence[str], answer_type: str) -> str:
    """The part of a response that is its answer; "" if there is none. The public rules first, ours where those ask a judge."""
    public = extracted_by_rule(response, choices, answer_type)
    return _judged(response, choices, answer_type) if public is None else public


def extracted_by_rule(response: str, choices: Sequence[str], answer_type: str) -> str | None:
    """The public rules alone, the one for `The answer is "…".` included; None where they ask the judge."""
    if not response or (choices and response in choices):
        return response
    for kind, read in (("integer", int), ("float", float)):
        if answer_type == kind:
            try:
                return str(read(response))
            except ValueError:
                pass
    quoted = _QUOTED.search(response)
    return quoted[1] if quoted else None


def _judged(response: str, choices: Sequence[str], answer_type: str) -> str:
    """What stands in a box, else behind the last `answer is` or `=`, else anywhere, the last first; "" if there is nothing of the kind."""
    places = [last_boxed(response), *(told[1] for line in reversed(response.splitlines()) if (told := _TOLD.search(line))), response]
    for place in filter(None, places):
        found = _option(place, choices) if choices else _value(place, answer_type)
        if found:
            return found
    return ""


def _option(text: str, choices: Sequence[str]) -> str | None:
    """A letter in brackets, a letter alone, or the text of one option, the last of several."""
    letters = ascii_uppercase[:len(choices)]
    for pattern in (_LETTER, _ALONE):
        named = [letter.upper() for letter in pattern.findall(text) if letter.upper() in letters]
        if named:
            return named[-1]
    low = text.lower()
    told = [choice for choice in choices if choice.lower() in low]
    return max(told, key=lambda choice: (low.rfind(choice.lower()), len(choice))) if told else None


def _value(text: str, answer_type: str) -> str | None:
    if answer_type == "list":
        return next(reversed(_LIST.findall(text)), None)
    return next((number.replace(",", "") for number in reversed(_NUMBER.findall(text))), None)


def normalised(found: str, choices: Sequence[str], answer_type: str, precision: int) -> str | None:
    """A found answer in the form of the truths: the text of an option, the nearest by edit distance if it is none; an integer; a
    float of `precision` decimals. None if it cannot be brought into it."""
    if choices:
        return _as_choice(found.strip(), choices)
    try:
        if answer_type == "integer":
            return str(int(float(found)))
        return str(round(float(found), precision)) if answer_type == "float" else found
    except (ValueError, OverflowError):
        return None


def _as_choice(found: str, choices: Sequence[str]) -> str | None:
    bracketed = _LETTER.search(found)
    letter = bracketed[1].upper() if bracketed else found
    if letter in (letters := list(ascii_uppercase[:len(choices)])):
        return choices[letters.index(letter)]
    if not letter or len(letter) > _LONG:       # the public script takes the shortest option for nothing at all
        return None
    return min(choices, key=lambda choice: edit_distance(letter, choice))
