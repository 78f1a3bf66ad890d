"""Scorers by the names that recipes/eval/*.yaml use, all called alike: answers and questions in, a mark for each out."""

import inspect
from collections.abc import Callable, Sequence

from nvlm_train.config.benchmark import Benchmark
from nvlm_train.config.typed import suggestion
from nvlm_train.errors import ConfigError
from nvlm_train.evaluation.benchmark.questions import Question
from nvlm_train.evaluation.scorers.anls import anls
from nvlm_train.evaluation.scorers.cider import cider
from nvlm_train.evaluation.scorers.gsm8k import gsm8k
from nvlm_train.evaluation.scorers.humaneval import humaneval
from nvlm_train.evaluation.scorers.letters import letter, letter_or_exact
from nvlm_train.evaluation.scorers.mark import Mark, right_or_wrong
from nvlm_train.evaluation.scorers.math_answers import math_equal
from nvlm_train.evaluation.scorers.mathvista import mathvista
from nvlm_train.evaluation.scorers.mmmu import mmmu
from nvlm_train.evaluation.scorers.ocrbench import ocrbench
from nvlm_train.evaluation.scorers.relaxed import relaxed
from nvlm_train.evaluation.scorers.vqa import textvqa, vqa_v2
from nvlm_train.evaluation.scores import is_correct, normalise

Scorer = Callable[..., Mark]

# One answer at a time: (answer, question, options) -> mark.
ONE: dict[str, tuple[Scorer, Callable[[Question], tuple]]] = {
    "anls": (anls, lambda asked: (asked.truths,)),
    "relaxed": (relaxed, lambda asked: (asked.truths,)),
    "vqa_v2": (vqa_v2, lambda asked: (asked.truths,)),
    "textvqa": (textvqa, lambda asked: (asked.truths,)),
    "letter": (letter, lambda asked: (asked.truths, asked.choices)),
    "letter_or_exact": (letter_or_exact, lambda asked: (asked.truths, asked.choices)),
    "mmmu": (mmmu, lambda asked: (asked.truths, asked.choices)),
    "mathvista": (mathvista, lambda asked: (asked.truths, asked.choices, asked.kept["answer_type"], asked.kept["precision"])),
    "ocrbench": (ocrbench, lambda asked: (asked.truths, asked.kept["dataset"])),
    "gsm8k": (gsm8k, lambda asked: (asked.truths,)),
    "math": (math_equal, lambda asked: (asked.truths,)),
    "humaneval": (humaneval, lambda asked: (asked.kept,)),
}


def exact(prediction: str, truths: Sequence[str]) -> Mark:
    """The demo's: the same text after `scores.normalise`."""
    return right_or_wrong(is_correct(prediction, truths), normalise(prediction))


ONE["exact"] = (exact, lambda asked: (asked.truths,))
ALL = {"cider": cider}      # need all answers at once


def check_scorer(benchmark: Benchmark) -> None:
    """Raises ConfigError: no such scorer, or an option that it has not."""
    name, known = benchmark.scorer, [*ONE, *ALL]
    if name not in known:
        raise ConfigError(f"eval={benchmark.name}: no scorer is called {name!r}{suggestion(name, known)} (known: {', '.join(known)})")
    scorer = ALL[name] if name in ALL else ONE[name][0]
    options = [option for option, parameter in inspect.signature(scorer).parameters.items()
               if parameter.default is not inspect.Parameter.empty]
    if odd := benchmark.options.keys() - set(options):
        raise ConfigError([f"eval={benchmark.name}: the scorer {name} has no option {option!r}, only {', '.join(options) or 'none'}"
                           for option in sorted(odd)])


def marked(benchmark: Benchmark, answers: Sequence[str], questions: Sequence[Question]) -> list[Mark]:
    """A mark for every answer. Needs no pictures."""
    if benchmark.scorer in ALL:
        return ALL[benchmark.scorer](answers, [question.truths for question in questions], **benchmark.options)
    scorer, told = ONE[benchmark.scorer]
    return [scorer(answer, *told(question), **benchmark.options) for answer, question in zip(answers, questions, strict=True)]
