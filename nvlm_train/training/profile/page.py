"""profile.html: where the time of some steps went, on one self-contained page in the style of a run's report."""

import time
from collections.abc import Mapping
from pathlib import Path

from nvlm_train.training.logs import write_atomically
from nvlm_train.training.profile.parts import LABELS, PHASES
from nvlm_train.training.report.charts import share_bar
from nvlm_train.training.report.data import STAGE_NAMES, Figure, flops
from nvlm_train.training.report.templates import templates

PAGE = "profile.html"
_COLOURS = {name: number for number, name in enumerate(LABELS, start=1)}     # --c1 … of profile.css


def write_page(folder: Path, content: Mapping) -> Path:
    """content: of summary.json. Returns the page's path. Raises OSError."""
    jinja = templates(Path(__file__).parent)
    jinja.globals.update(share_bar=share_bar, milliseconds=milliseconds, operations=operations, rate=rate, phases=PHASES)
    parts, labels = content["components"], LABELS if content["on_gpu"] else {**LABELS, "idle": "Python outside of all parts"}
    html = jinja.get_template("profile.html.j2").render(
        content=content, stage=STAGE_NAMES.get(content["stage"], content["stage"]), steps=_steps(content["steps"]),
        written=time.strftime("%d %B %Y, %H:%M"), figures=_figures(content), colours=_COLOURS, labels=labels,
        bar=[(labels[name], part["seconds"], _COLOURS[name]) for name, part in parts.items()],
        longest=max(part["seconds"] for part in parts.values()),
        split=[(phase.capitalize(), amount, number) for number, phase in enumerate(PHASES, start=1)
               if (amount := sum(part["phases"].get(phase, 0) for part in parts.values()))])
    write_atomically(folder / PAGE, html.encode("utf-8"))
    return folder / PAGE


def _steps(numbers) -> str:
    return f"step {numbers[0]}" if len(numbers) == 1 else f"steps {numbers[0]} to {numbers[-1]}"


def _figures(content: Mapping) -> list[Figure]:
    parts, others = content["components"], content["others"]
    times = f"{milliseconds(min(content['steps_s']))} to {milliseconds(max(content['steps_s']))}"
    found = [Figure("A profiled step", milliseconds(content["step_s"]), times)]
    if others:
        found.append(Figure("A step before", milliseconds(others["median_s"]),
                            f"median of {others['steps']}, p95 {others['p95_s'] / others['median_s']:.2f} times it"))
    if content["mfu"] is not None:
        found.append(Figure("MFU", f"{content['mfu']:.1%}", f"{rate(content['flops_per_s'])} a device"))
    elif content["flops_per_s"]:
        found.append(Figure("Useful work", rate(content["flops_per_s"]), "each device, padding not counted"))
    waits = parts.get("data", {"share": 0.0, "seconds": 0.0})
    found.append(Figure("Waiting for data", f"{waits['share']:.1%}", f"{milliseconds(waits['seconds'])} a step"))
    return found


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"


def operations(number: float) -> str:
    """In 10⁹ or 10¹²; a dash for none."""
    if not number:
        return "–"
    return f"{number / 1e12:,.3g} ×10¹²" if number >= 1e12 else f"{number / 1e9:,.3g} ×10⁹"


def rate(number: float | None) -> str:
    return "–" if number is None else flops(number / 1e12)
