"""The results as rows of text, the same on the page and on the console."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nvlm_train.comparison.intervals import STUDENT
from nvlm_train.model.accounting import COMPONENTS
from nvlm_train.training.progress import human
from nvlm_train.training.report.data import STAGE_NAMES

UNKNOWN = "–"
_ARCHITECTURES = {"nvlm_d": "decoder-only", "nvlm_x": "cross-attention", "nvlm_h": "hybrid"}
_OF_A_STAGE: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("training_loss", "training loss", "{:.3f}".format),
    ("validation_loss", "validation loss", "{:.3f}".format),
    ("samples_per_s", "samples a second", "{:.3g}".format),
    ("tokens_per_sample", "tokens a sample", "{:.1f}".format),
    ("memory_tokens_per_sample", "memory tokens a sample", lambda value: f"{value:.1f}" if value else "none"),
    ("gflop_per_sample", "useful GFLOP a sample", "{:.3g}".format),
    ("refused", "refused samples", "{:g}".format),
)


@dataclass(frozen=True)
class Row:
    """One line of a table. values: one a design, in the order of the designs."""

    label: str
    values: Sequence[str]


def score_rows(results: Mapping) -> list[Row]:
    """For each task: accuracy with its interval, less the first design's, then with grey pictures, then of the commonest answer."""
    rows, first = [], next(iter(results["designs"]))
    for task in tasks_of(results):
        marks = [design["tasks"].get(task) for design in results["designs"].values()]
        rows.append(Row(task, [UNKNOWN if mark is None else spelt(mark) for mark in marks]))
        if any(mark and mark["less_first"] for mark in marks):
            rows.append(Row(f"{task}, less {first}, points", ["" if mark is marks[0] else _points(mark and mark["less_first"]) for mark in marks]))
        if any(mark and mark["blanked"] is not None for mark in marks):
            rows.append(Row(f"{task}, pictures blanked", [_percent(mark and mark["blanked"]) for mark in marks]))
        rows.append(Row(f"{task}, commonest answer", [_percent(mark and mark["majority"]) for mark in marks]))
    return rows


def cost_rows(results: Mapping) -> list[Row]:
    """Design, sizes and memory: what does not depend on the stage."""
    designs = results["designs"].values()
    rows = [Row("design", [_ARCHITECTURES.get(design["architecture"], design["architecture"]) for design in designs]),
            Row("parameters", [human(design["parameters"]["total"]) for design in designs])]
    for component in COMPONENTS:
        if any(design["parameters"][component] for design in designs):
            rows.append(Row(f"of them {component.replace('_', '-')}",
                            [human(design["parameters"][component]) for design in designs]))
    rows.append(Row("peak GiB of a process", [_known(design["peak_memory_gib"], "{:.2f}".format) for design in designs]))
    return rows


def stage_rows(results: Mapping, stage: str) -> list[Row]:
    """The figures of one stage; a figure that is 0 or unknown for every design is left out."""
    figures = [design["stages"].get(stage, {}) for design in results["designs"].values()]
    return [Row(label, [_known(each.get(key), form) for each in figures])
            for key, label, form in _OF_A_STAGE if any(each.get(key) for each in figures)]


def tasks_of(results: Mapping) -> list[str]:
    return list(dict.fromkeys(task for design in results["designs"].values() for task in design["tasks"]))


def stages_of(results: Mapping) -> list[tuple[str, str]]:
    """(key, name) of each stage."""
    return [(stage, STAGE_NAMES.get(stage, stage)) for stage in results["same"]]


def interval_note(results: Mapping) -> str:
    """How the intervals came about; empty without scores."""
    methods = {task["interval"] for design in results["designs"].values() for task in design["tasks"].values()}
    return "; ".join(text for text in (
        f"Student t over {len(results['seeds'])} seeds" if STUDENT in methods else "",
        "Wilson interval over the questions of a task" if methods - {STUDENT} else "",
    ) if text)


def spelt(mark: Mapping) -> str:
    """A score with its interval: 88.0% (84.4–90.9)."""
    low, high = (f"{mark[end]:.1%}".rstrip("%") for end in ("low", "high"))
    return f"{mark['accuracy']:.1%} ({low}–{high})"


def differences_of(results: Mapping, task: str) -> str:
    """All differences from the first design in one line; empty where there are too few seeds."""
    told = [f"{name} {_points(mark['less_first'])}" for name, design in results["designs"].items()
            if (mark := design["tasks"].get(task)) and mark["less_first"]]
    return f"Less {next(iter(results['designs']))}, seed by seed, in points: {'; '.join(told)}" if told else ""


def _points(difference: Mapping | None) -> str:
    """A difference of accuracies with its interval, in hundredths: −8.3 (−14.8 to −1.7)."""
    if difference is None:
        return UNKNOWN
    mean, low, high = (f"{100 * difference[key]:+.1f}".replace("-", "−") for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _percent(value: float | None) -> str:
    return _known(value, "{:.1%}".format)


def _known(value: float | None, form: Callable[[float], str]) -> str:
    return UNKNOWN if value is None else form(value)
