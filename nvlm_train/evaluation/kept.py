"""What an evaluation leaves in the run directory of the checkpoint that was asked."""

import json
from collections.abc import Mapping
from pathlib import Path

from nvlm_train.evaluation.opening import Model
from nvlm_train.training.logs import EVAL, finite

APART = "scores"    # added to the stage's name in rows that another job than the training wrote: a resumed training leaves them alone


def keep_scores(model: Model, scores: Mapping[str, Mapping]) -> None:
    """Task -> figures, a row of eval.jsonl each. The model is one of a run directory."""
    for task, figures in scores.items():
        keep_row(model.run_dir, {"stage": model.manifest.stage, "step": model.manifest.step, "kind": "score", "task": task,
                                 "scores": figures})


def keep_row(run_dir: Path, row: Mapping) -> None:
    """A row of eval.jsonl, marked as not the training's own."""
    with (run_dir / EVAL).open("a", encoding="utf-8") as file:
        file.write(json.dumps(finite({**row, "stage": f"{row['stage']} {APART}"}), allow_nan=False) + "\n")
