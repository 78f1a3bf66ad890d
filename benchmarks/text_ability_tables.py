"""The tables of docs/text_ability.md, out of what `benchmarks.text_ability` has measured."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from nvlm_train.comparison.intervals import ENOUGH_SEEDS, student_t
from nvlm_train.evaluation.benchmark.paired import difference

UNITS = {"loss": "nats a token", "right": "% right"}


def tables(folder: Path) -> str:
    """A Markdown table for every kind of figure: a row a test, a column a share of text; differences from the backbone below."""
    measured = [json.loads(path.read_bytes()) for path in sorted(folder.glob("*/text.json"))]
    before = next((each["tests"] for each in measured if each["share"] is None), None)
    if before is None:
        return f"nothing is measured in {folder} yet"
    shares = sorted({each["share"] for each in measured if each["share"] is not None})
    after = {share: [each["tests"] for each in measured if each["share"] == share] for share in shares}
    return "\n\n".join(_table(kind, before, after) for kind in UNITS)


def _table(kind: str, before: dict, after: dict[float, list[dict]]) -> str:
    lines = [f"| {UNITS[kind]} | samples | backbone | " + " | ".join(f"{share:.0%} text" for share in after) + " |",
             "|---" * (len(after) + 3) + "|"]
    for test, figures in before.items():
        if kind not in figures:
            continue
        old = figures[kind]
        cells = [_cell(kind, [each[test][kind] for each in runs], old) for runs in after.values()]
        lines.append(f"| {test} | {len(old)} | {_number(kind, fmean(old))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(kind: str, runs: Sequence[Sequence[float]], old: Sequence[float]) -> str:
    """Mean over the seeds, and its difference from the backbone: over seeds if there are enough, else over the samples."""
    mean = fmean(fmean(values) for values in runs)
    if len(runs) >= ENOUGH_SEEDS:
        over = student_t([fmean(values) - fmean(old) for values in runs], -float("inf"), float("inf"))
        low, high = over.low, over.high
    else:
        over_samples = difference([fmean(values) for values in zip(*runs, strict=True)], old)
        low, high = over_samples.low, over_samples.high
    return f"{_number(kind, mean)} ({_signed(kind, low)} to {_signed(kind, high)})"


def _number(kind: str, value: float) -> str:
    return f"{100 * value:.1f}" if kind == "right" else f"{value:.3f}"


def _signed(kind: str, value: float) -> str:
    return ("+" if value >= 0 else "−") + _number(kind, abs(value))
