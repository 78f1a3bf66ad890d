"""What one training cost and came to, out of its logs."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm_train.training.logs import EVAL, METRICS, read_rows

WARM_UP = 0.1       # share of a stage's steps that says little about speed
TAIL = 0.05         # share of a stage's steps whose mean loss is its final loss


@dataclass(frozen=True)
class StageFigures:
    """One stage of one training; None where the logs do not tell.

    training_loss: mean of the last twentieth of the steps; validation_loss: the last one. samples_per_s: median after the first
    tenth of the steps. tokens_per_sample: real tokens of the language model's sequence; memory_tokens_per_sample: those beside it
    that cross-attention reads. gflop_per_sample: useful operations, forward and backward. refused: empty slots.
    """

    training_loss: float | None
    validation_loss: float | None
    samples_per_s: float | None
    tokens_per_sample: float | None
    memory_tokens_per_sample: float | None
    gflop_per_sample: float | None
    refused: int


@dataclass(frozen=True)
class RunFigures:
    """A training's stages, and the most memory that one of its processes held, in GiB."""

    stages: dict[str, StageFigures]
    peak_memory_gib: float | None


def measure(folder: Path) -> RunFigures:
    """The figures of a run directory, finished or not."""
    rows, evaluations = read_rows(folder / METRICS), read_rows(folder / EVAL)
    stages = {}
    for name in dict.fromkeys(row["stage"] for row in rows):
        validations = [row.get("loss") for row in evaluations if row.get("kind") == "validation" and row.get("stage") == name]
        stages[name] = stage_figures([row for row in rows if row["stage"] == name], validations[-1] if validations else None)
    return RunFigures(stages, max(_known(rows, "peak_memory_gib"), default=None))


def stage_figures(rows: Sequence[dict], validation_loss: float | None) -> StageFigures:
    """From the rows of metrics.jsonl of one stage, at least one."""
    tail = _known(rows[-max(1, round(TAIL * len(rows))):], "loss")
    warm = _known(rows[round(WARM_UP * len(rows)):], "samples_per_s")
    samples = sum(row["samples"] for row in rows)
    work = [row["tflops"]["total"] * row["step_s"] * row["devices"] for row in rows if row.get("tflops") and row.get("devices")]
    memory = _known(rows, "memory_tokens")
    return StageFigures(
        training_loss=statistics.mean(tail) if tail else None,
        validation_loss=validation_loss,
        samples_per_s=statistics.median(warm) if warm else None,
        tokens_per_sample=sum(row["tokens"] for row in rows) / samples if samples else None,
        memory_tokens_per_sample=sum(memory) / samples if samples and len(memory) == len(rows) else None,
        gflop_per_sample=1000 * sum(work) / samples if samples and len(work) == len(rows) else None,
        refused=sum(row["refused"] for row in rows),
    )


def _known(rows: Sequence[dict], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]
