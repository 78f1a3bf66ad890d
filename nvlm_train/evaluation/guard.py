"""The text guard: what the untouched backbone answered, and how much worse a trained model is on the same questions.

    RUN/benchmarks/backbone/NAME.jsonl, NAME.json   the backbone's answers and score, and how it was asked
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nvlm_train.config.benchmark import Benchmark
from nvlm_train.errors import DataError, TrainingError
from nvlm_train.evaluation.benchmark.asking import FOLDER
from nvlm_train.evaluation.benchmark.paired import Difference, difference
from nvlm_train.evaluation.benchmark.results import Answered

BACKBONE = "backbone"
ALARM = "alarm"     # beside a checkpoint's scores: what `nvlm eval-checkpoints` has to say to the run, if it may stop it

log = logging.getLogger(__name__)


class TextRegression(TrainingError):
    """The language model has lost more of its text ability than the run allows: a person must look before it goes on."""

    exit_code = 77  # EX_NOPERM: "refused by a rule"; a scheduler must not start it again


@dataclass(frozen=True)
class Verdict:
    """One benchmark, before and after. Scores and differences lie between 0 and 1, `margin` too.

    delta, low, high: mean difference question by question, and its 95% interval. alarm: it is below -margin, and significantly below 0.
    """

    benchmark: str
    backbone: float
    score: float
    delta: float
    low: float
    high: float
    margin: float
    alarm: bool

    def as_json(self) -> dict:
        """Flat, without what the row around it says."""
        return {name: value for name, value in asdict(self).items() if name not in ("benchmark", "score")}

    def __str__(self) -> str:
        return (f"{self.benchmark} fell from {100 * self.backbone:.1f} to {100 * self.score:.1f}: {100 * self.delta:+.1f} points "
                f"({100 * self.low:+.1f} to {100 * self.high:+.1f}), and guard.margin={100 * self.margin:g} are allowed")


def judged(row: dict, found: Verdict, raised: bool) -> dict:
    """A row of scores with the guard's words beside its figures. raised: an alarm begins with it, and is told."""
    if raised:
        log.warning("TEXT GUARD, after step %d of %s: %s", row["step"], row["stage"], found)
    return {**row, "guard": {**row["guard"], "raised": raised, **({"text": str(found)} if found.alarm else {})}}


@dataclass(frozen=True)
class Asked:
    """How a backbone was asked. stage: at whose start. weights: what that stage started from, in words."""

    stage: str
    weights: str
    limit: int
    max_new_tokens: int


class Backbone:
    """The untouched language model's answers to one benchmark, in a run directory."""

    def __init__(self, run_dir: Path, benchmark: Benchmark):
        self.folder, self.benchmark = run_dir / FOLDER / BACKBONE, benchmark

    def asked(self) -> Asked | None:
        """How it was; None if it never was, or was stopped on the way."""
        try:
            facts = json.loads((self.folder / f"{self.benchmark.name}.json").read_bytes())
            return Asked(**{name: facts[name] for name in Asked.__dataclass_fields__})
        except (FileNotFoundError, KeyError, ValueError):
            return None

    def marks(self) -> dict[str, float]:
        """Question's id -> mark. Raises DataError for a file that cannot be read."""
        path = self.folder / f"{self.benchmark.name}.jsonl"
        try:
            rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            return {str(row["id"]): float(row["score"]) for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, the backbone's answers, cannot be read ({error}): remove the folder, and start the stage anew") from error

    def compared(self, answered: Sequence[Answered], margin: float) -> Verdict:
        """margin: as a share of 1. Raises DataError if other questions were asked."""
        return verdict(self.benchmark.name, {one.question.id: one.mark.score for one in answered}, self.marks(), margin)


def alarms(run_dir: Path) -> list[str]:
    """What `nvlm eval-checkpoints` has left word of, each with the file that says it."""
    found = sorted((run_dir / FOLDER).glob(f"[a-z]*-step-*/{ALARM}"))
    return [f"{path.read_text(encoding='utf-8').strip()} (said by {path}: remove it to go on)" for path in found]


def verdict(benchmark: str, new: Mapping[str, float], old: Mapping[str, float], margin: float) -> Verdict:
    """Of marks by question. Raises DataError, with the numbers, if the questions are not the same."""
    if new.keys() != old.keys():
        raise DataError(f"{benchmark}: {len(new):,} questions were asked now and {len(old):,} of the backbone, {len(new.keys() & old.keys()):,} "
                        "of them the same: a difference would say nothing. Ask as then (evaluate.limit, evaluate.data)")
    ids = list(old)
    change: Difference = difference([new[key] for key in ids], [old[key] for key in ids])
    before = sum(old.values()) / len(old)
    return Verdict(benchmark, before, sum(new.values()) / len(new), change.mean, change.low, change.high, margin,
                   alarm=change.mean < -margin and change.high < 0)
