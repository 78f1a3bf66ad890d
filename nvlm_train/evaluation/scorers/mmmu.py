"""MMMU: the letter of a multiple-choice answer, or what an open answer says, numbers included.

Source: Yue et al., arXiv:2311.16502; MMMU-Benchmark/MMMU, `mmmu/utils/eval_utils.py`.
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase

from nvlm_train.evaluation.scorers.mark import Mark, right_or_wrong

_EDGES = ",.!?;:'"
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")
_SENTENCES = re.compile(r"\.\s(?=[A-Z])|\n")
_NUMBERS = (re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"), re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
            re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"))


def mmmu(prediction: str, truths: Sequence[str], choices: Sequence[str]) -> Mark:
    """Right if the option named last is a true one; without options, if one of the things said is.

    The public script answers at random where it finds no option; here that is wrong, so that a score is the same every time.
    """
    if choices:
        found = chosen(prediction, choices)
        return right_or_wrong(found is not None and found in truths, found)
    said = open_answers(prediction)
    wanted = [form for truth in truths for form in _normalised(truth)]
    correct = any(_says(one, wanted) for one in said)
    return right_or_wrong(correct, " | ".join(sorted(map(str, said))))


def chosen(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the option that an answer names, the last one of several; None if it names none.

    `(B)` counts before `B ` and that before `B.`; the text of an option counts in an answer of more than five words.
    """
    for edge in _EDGES:
        answer = answer.strip(edge)
    answer = f" {answer} "
    letters = ascii_uppercase[:len(choices)]
    for found, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        named = [letter for letter in letters if found.format(letter) in answer]
        if named:       # max keeps the first of equal places, as where none stands alone
            return max(named, key=lambda letter: answer.rfind(place.format(letter)))
    if len(answer.split()) <= 5:
        return None
    low = answer.lower()
    places = {letter: low.rfind(text.lower()) for letter, text in zip(letters, choices, strict=True) if text.lower() in low}
    return max(places, key=places.__getitem__) if places else None


def open_answers(answer: str) -> set[str | float]:
    """What an open answer may mean: for each sentence what follows its last key word, and every number in that."""
    parts = _key_parts(answer)
    numbers = [number for part in parts for pattern in _NUMBERS for number in pattern.findall(part)]
    return {form for text in (*parts, *numbers) for form in _normalised(text)}


def _key_parts(answer: str) -> list[str]:
    answer = answer.strip().strip(".").lower()
    parts = []
    sentences = _SENTENCES.split(answer)
    for number, sentence in enumerate(sentences):
        keys = (*_KEYS, "=") if number == len(sentences) - 1 else _KEYS    # the last sentence may be an equation
        tails = [sentence.split(key)[-1].strip() for key in keys if key in sentence]
        shortest = _shortest(tails)
        if shortest and shortest not in _TRIVIAL:
            parts.append(shortest)
    return parts or [answer]


def _shortest(tails: Sequence[str]) -> str | None:
    """The first of the shortest; an empty one gives way to the next, as in the public script."""
    shortest: str | None = None
    for tail in tails:
        if not shortest or len(tail) < len(shortest):
            shortest = tail
    return shortest


def _says(one: str | float, wanted: Sequence[str | float]) -> bool:
    if isinstance(one, str):
        return any(isinstance(form, str) and form in one for form in wanted)
    return one in wanted


def _normalised(text: str) -> list[str | float]:
    """A number as a number, to two decimals; else lower case. A single letter needs a space at its side: it stands in any word."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
