"""What the report shows of scores: curves over steps with their intervals, the backbone beside the trained model, tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm_train.training.logs import parse_row
from nvlm_train.training.report.charts import Chart, Series

_APART = " scores"      # behind the stage's name in rows that another job than the training wrote


@dataclass(frozen=True)
class ScoreTable:
    """Scores of tasks: a column a kind of score, a row a task. Fractions (floats of 0 to 1) are shown as percentages."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float]]]


@dataclass(frozen=True)
class Kept:
    """A text benchmark of the backbone and of the trained model, in points of 100; interval: 95%, of the difference, question by question.

    alarm: what the text guard says of it; "" if nothing.
    """

    task: str
    step: str
    backbone: float
    score: float
    delta: float
    low: float
    high: float
    alarm: str


def kept_text(evaluations: Sequence[dict]) -> list[Kept]:
    """The newest comparison of every text benchmark that the guard watches."""
    newest = {row["task"]: row for row in evaluations if isinstance(row.get("guard"), dict) and row.get("kind") == "score"}
    return [Kept(task, f"{row['stage'].removesuffix(_APART)} {row['step']:,}", *(100 * value for value in (
        row["guard"]["backbone"], row["scores"]["score"], row["guard"]["delta"], row["guard"]["low"], row["guard"]["high"])),
        alarm=row["guard"].get("text", "") if row["guard"]["alarm"] else "") for task, row in newest.items()]


def score_charts(evaluations: Sequence[dict], stage: str) -> list[Chart]:
    """A chart for every benchmark that was asked at two steps or more; the last row of a step counts."""
    tasks: dict[str, dict[int, dict]] = {}
    for row in evaluations:
        if row.get("kind") == "score" and row["stage"].removesuffix(_APART) == stage and "low" in row.get("scores", {}):
            tasks.setdefault(row["task"], {})[row["step"]] = row["scores"]
    charts = []
    for task, steps in sorted(tasks.items()):
        found = sorted(steps.items())
        if len(found) > 1:
            series = Series("score and 95% interval", [(step, scores["score"]) for step, scores in found], 3, "dots",
                            [(scores["low"], scores["high"]) for _, scores in found])
            charts.append(Chart(f"{task}: points of 100, 95% interval", [series], lambda value: f"{100 * value:.0f}"))
    return charts


def score_tables(evaluations: Sequence[dict], summary: Path) -> list[ScoreTable]:
    """Scores of eval.jsonl (the last one of each task) and those of a demo's summary.json; a table for tasks of like scores."""
    tasks: dict[str, dict[str, float]] = {}
    for row in evaluations:
        if isinstance(row.get("scores"), dict):
            tasks[str(row.get("task", row.get("stage", "")))] = row["scores"]
    for task, scores in ((parse_row(summary.read_bytes()) or {}) if summary.exists() else {}).items():
        if isinstance(scores, dict):
            tasks[task] = scores
    alike: dict[tuple[str, ...], list] = {}
    for task, scores in tasks.items():
        numbers = {name: value for name, value in scores.items() if type(value) in (int, float)}
        if numbers:
            alike.setdefault(tuple(numbers), []).append((task, list(numbers.values())))
    return [ScoreTable(columns, rows) for columns, rows in alike.items()]
