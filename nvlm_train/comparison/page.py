"""compare.html: the comparison on one self-contained page, in the style of a run's report."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm_train.comparison import figures
from nvlm_train.comparison.results import Outcome
from nvlm_train.training.logs import EVAL, METRICS, read_rows, write_atomically
from nvlm_train.training.report.charts import Chart, Series, line_chart, smooth
from nvlm_train.training.report.templates import templates

PAGE = "compare.html"


@dataclass(frozen=True)
class Bar:
    """A design's score in one task, all shares of 0 to 1."""

    design: str
    colour: int
    accuracy: float
    low: float
    high: float
    told: str
    blanked: float | None
    majority: float


def write_page(folder: Path, results: Mapping, outcomes: Sequence[Outcome]) -> Path:
    """Write compare.html into `folder`; returns its path. The curves are read from the runs' own logs."""
    jinja = templates(Path(__file__).parent)
    jinja.globals.update(line_chart=line_chart)
    html = jinja.get_template("compare.html.j2").render(
        title=folder.resolve().name, results=results, written=time.strftime("%d %B %Y, %H:%M"),
        colours={name: colour for colour, name in enumerate(results["designs"], start=1)},
        tasks=[(task, _bars(results, task), figures.differences_of(results, task)) for task in figures.tasks_of(results)], note=figures.interval_note(results),
        stages=[(name, _charts(stage, outcomes), figures.stage_rows(results, stage))
                for stage, name in figures.stages_of(results)],
        stage_names=dict(figures.stages_of(results)), costs=figures.cost_rows(results),
    )
    write_atomically(folder / PAGE, html.encode("utf-8"))
    return folder / PAGE


def _bars(results: Mapping, task: str) -> list[Bar]:
    bars = []
    for colour, (name, design) in enumerate(results["designs"].items(), start=1):
        if mark := design["tasks"].get(task):
            bars.append(Bar(name, colour, mark["accuracy"], mark["low"], mark["high"], figures.spelt(mark), mark["blanked"],
                            mark["majority"]))
    return bars


def _charts(stage: str, outcomes: Sequence[Outcome]) -> list[Chart]:
    """Training loss of all designs, and validation loss where it was measured more than once."""
    charts = [_chart("Training loss, smoothed", stage, outcomes, METRICS, smoothed=True)]
    validation = _chart("Validation loss", stage, outcomes, EVAL, smoothed=False)
    if any(len(series.points) > 1 for series in validation.series):
        charts.append(validation)
    return charts


def _chart(title: str, stage: str, outcomes: Sequence[Outcome], log: str, smoothed: bool) -> Chart:
    """A line a design: the mean over its seeds, for as many steps as all of them have."""
    lines = []
    for colour, name in enumerate(dict.fromkeys(outcome.job.design.name for outcome in outcomes), start=1):
        curves = [_losses(outcome.job.folder / log, stage) for outcome in outcomes
                  if outcome.job.design.name == name and outcome.figures is not None]
        points = _mean([curve for curve in curves if curve])
        lines.append(Series(name, smooth(points) if smoothed else points, colour, "line" if smoothed else "dots"))
    return Chart(title, lines, lambda value: f"{value:.2f}", width=1156)


def _losses(log: Path, stage: str) -> dict[int, float | None]:
    """Step -> loss, of training steps or validations."""
    return {row["step"]: row.get("loss") for row in read_rows(log)
            if row.get("stage") == stage and row.get("kind", "validation") == "validation"}


def _mean(curves: Sequence[Mapping[int, float | None]]) -> list[tuple[float, float | None]]:
    if not curves:
        return []
    points = []
    for step in sorted(set.intersection(*map(set, curves))):
        values = [curve[step] for curve in curves]
        points.append((step, None if None in values else sum(values) / len(values)))
    return points
