"""One benchmark, asked of a model of a run, with all that it leaves behind: answers, score, comparison with the backbone, examples.

    RUN/benchmarks/STAGE-step-N/NAME.jsonl, NAME.json   the answers and the score
    RUN/benchmarks/shown/NAME/predictions.jsonl         the newest examples, for the report
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nvlm_train.contracts import Sample
from nvlm_train.engine.agree import on_main
from nvlm_train.errors import TrainingError
from nvlm_train.evaluation.benchmark.asking import FOLDER, Asker, Round, figures, keep, put, scores_folder
from nvlm_train.evaluation.benchmark.questions import Questions
from nvlm_train.evaluation.guard import Asked, Backbone, Verdict
from nvlm_train.evaluation.predictions import rows
from nvlm_train.evaluation.tasks import Answer
from nvlm_train.training.report import PREDICTIONS, write_predictions

Tell = Callable[[dict, Sequence[dict], Verdict | None], None]


@dataclass(frozen=True)
class Place:
    """Where a model stands: after `step` steps of `stage` of the run in `run_dir`. checkpoint: its folder, if it is one."""

    run_dir: Path
    stage: str
    step: int
    checkpoint: str | None = None


def score(asker: Asker, questions: Questions, place: Place, limit: int, examples: int, margin: float, backbone: Backbone | None,
          tell: Tell) -> Verdict | None:
    """Ask, mark, keep, and tell on the main rank: tell(row of eval.jsonl, rows of predictions.jsonl, verdict). A collective.

    backbone: whose answers to compare with; None for no comparison. margin: as a share of 1. Returns the verdict on every rank.
    Raises DataError where questions cannot be read or put, TrainingError where nothing can be written.
    """
    began = time.perf_counter()
    asked = put(asker, questions, min(examples, questions.count))

    def finish() -> Verdict | None:
        facts = {"stage": place.stage, "step": place.step, "checkpoint": place.checkpoint, "limit": limit, "max_new_tokens": asker.max_new_tokens}
        result = keep(scores_folder(place.run_dir, place.stage, place.step), questions.benchmark, asked.answered, facts)
        found = backbone.compared(asked.answered, margin) if backbone else None
        row = {"stage": place.stage, "step": place.step, "kind": "score", "task": questions.benchmark.name, "scores": figures(result),
               "seconds": time.perf_counter() - began}
        shown = _shown(asker, asked, questions, place.run_dir) if asked.shown else []
        tell({**row, "guard": found.as_json()} if found else row, shown, found)
        return found

    return on_main(asker.engine, f"keeping the score of {questions.benchmark.name}", finish, TrainingError)


def ask_backbone(asker: Asker, questions: Questions, backbone: Backbone, how: Asked, tell: Callable[[dict], None]) -> None:
    """Ask the untouched model and keep its answers; tell(row of eval.jsonl) on the main rank. A collective; raises as `score`."""
    began = time.perf_counter()
    asked = put(asker, questions)

    def finish() -> None:
        result = keep(backbone.folder, questions.benchmark, asked.answered, asdict(how))
        tell({"stage": how.stage, "step": 0, "kind": "score", "task": questions.benchmark.name, "scores": figures(result),
              "seconds": time.perf_counter() - began})

    on_main(asker.engine, f"keeping the backbone's score of {questions.benchmark.name}", finish, TrainingError)


def _shown(asker: Asker, asked: Round, questions: Questions, run_dir: Path) -> list[dict]:
    name = questions.benchmark.name
    answers = [_answer(name, asked, number) for number in sorted(asked.shown)]
    found = rows(answers, asker.encoder, asker.max_new_tokens)
    write_predictions(run_dir / FOLDER / "shown" / name / PREDICTIONS, found)
    return found


def _answer(name: str, asked: Round, number: int) -> Answer:
    one, question = asked.answered[number], asked.shown[number]
    sample: Sample = question.sample(name)
    return Answer(sample, name, one.text, question.truths, one.mark.score >= 0.5, one.refused)
