"""What the records of some benchmarks need before their fields can be read: options in the question's text, answers in a solution."""

import ast
import re
from collections.abc import Callable, Mapping
from string import ascii_uppercase
from typing import Any

from nvlm_train.errors import DataError
from nvlm_train.evaluation.readers import Record, value_of
from nvlm_train.evaluation.scorers.boxed import last_boxed

_PICTURE = re.compile(r"<image (\d+)>")
_OPTION = re.compile(r"^([A-Z])\. +(.*?) *$", re.MULTILINE)
_INLINE_OPTIONS = re.compile(r"(?P<asked>.*)\s\(A\) (?P<A>.*?)\s\(B\) (?P<B>.*?)\s\(C\) (?P<C>.*?)\s\(D\) (?P<D>.*?)(?:\s\(E\) (?P<E>.*?))?\s*",
                             re.DOTALL)
_TOLD_LETTER = re.compile(r"[Tt]he answer is \(([A-E])\)\.")
_TOLD_NUMBER = re.compile(r"The answer is (-?[\d.,]*\d)\.")


def mmmu(record: Record, where: str) -> Record:
    """Options and several truths come as Python lists in text; the pictures that count are those that question or options name."""
    options = _python_list(value_of(record, "options", where), where)
    answer = value_of(record, "answer", where)
    multiple = value_of(record, "question_type", where) == "multiple-choice"
    if not multiple and str(answer).startswith("["):
        answer = _python_list(answer, where)
    text = "\n".join([value_of(record, "question", where), *map(str, options)])
    named = sorted({int(number) for number in _PICTURE.findall(text)})
    pictures = [value_of(record, f"image_{number}", where) for number in named]
    subject = str(value_of(record, "id", where)).partition("_")[2].rpartition("_")[0]
    return {**record, "options": options if multiple else [], "answer": answer, "_images": pictures, "_subject": subject}


def mathvista(record: Record, where: str) -> Record:
    """Precision comes as a decimal number or not at all, and as a number of decimals must be whole."""
    return {**record, "precision": int(value_of(record, "precision", where) or 0)}


def place_as_letter(record: Record, where: str) -> Record:
    """AI2D: the truth is the place of its option, from 0."""
    place = value_of(record, "answer", where)
    if not str(place).isdecimal() or int(place) >= len(value_of(record, "options", where)):
        raise DataError(f"{where}: the answer {place!r} is the place of none of {len(record['options'])} options")
    return {**record, "_letter": ascii_uppercase[int(place)]}


def options_in_text(record: Record, where: str) -> Record:
    """RealWorldQA: options are lines of the question's text, `A. No`; there are some only where the answer is a letter."""
    options = _OPTION.findall(value_of(record, "question", where))
    answer = str(value_of(record, "answer", where)).strip()
    in_order = [letter for letter, _ in options] == list(ascii_uppercase[:len(options)])
    multiple = in_order and answer in {letter for letter, _ in options}
    return {**record, "answer": answer, "_options": [text for _, text in options] if multiple else []}


def gsm8k(record: Record, where: str) -> Record:
    """The truth stands behind `####`."""
    _, found, truth = value_of(record, "answer", where).rpartition("####")
    if not found:
        raise DataError(f"{where}: an answer without ####: {record['answer'][-60:]!r}. These are not GSM8K's files")
    return {**record, "_truth": truth.strip()}


def mmlu_example(record: Record, where: str) -> Record:
    """An example of a prompt with reasoning: options stand in the question, the letter in the last sentence. Its shots likewise."""
    return {**_mmlu_example(record, where), "_shots": [_mmlu_example(shot, where) for shot in record["_shots"]]}


def _mmlu_example(record: Record, where: str) -> Record:
    options, told = _INLINE_OPTIONS.fullmatch(record["question"]), _TOLD_LETTER.findall(record["target"])
    if not options or len(told) != 1 or (told[0] == "E" and not options["E"]):
        raise DataError(f"{where}: no options (A) to (D) in {record['question'][-60:]!r}, or not one `The answer is (letter)` behind it")
    choices = [options[letter] for letter in "ABCDE" if options[letter] is not None]
    return {**record, "question": options["asked"], "choices": choices, "answer": told[0]}


def gsm8k_example(record: Record, where: str) -> Record:
    """An example of a prompt with reasoning: the number stands in the last sentence. Shots show the reasoning."""
    told = _TOLD_NUMBER.findall(record["target"])
    if len(told) != 1:
        raise DataError(f"{where}: not one `The answer is N.` in {record['target'][-60:]!r}")
    shots = [{"question": shot["question"], "choices": (), "answer": shot["target"]} for shot in record["_shots"]]
    return {**record, "_truth": told[0], "_shots": shots}


def boxed(record: Record, where: str) -> Record:
    """MATH: the truth stands in the solution's box."""
    truth = last_boxed(value_of(record, "solution", where))
    if truth is None:
        raise DataError(f"{where}: a solution without \\boxed: {record['solution'][-60:]!r}. These are not MATH's files")
    return {**record, "_truth": truth}


def _python_list(text: Any, where: str) -> list:
    """A list written in Python's way. Only constants are read; nothing is run."""
    try:
        value = ast.literal_eval(text) if isinstance(text, str) else text
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"{where}: a list written as Python writes it is needed, found {str(text)[:60]!r}") from error
    if not isinstance(value, list):
        raise DataError(f"{where}: a list is needed, found {str(text)[:60]!r}")
    return value


SHAPES: Mapping[str, Callable[[Record, str], Record]] = {
    "none": lambda record, where: record, "mmmu": mmmu, "mathvista": mathvista, "place_as_letter": place_as_letter,
    "options_in_text": options_in_text, "gsm8k": gsm8k, "boxed": boxed, "mmlu_example": mmlu_example, "gsm8k_example": gsm8k_example,
}
