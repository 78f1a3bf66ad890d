"""What a person watching sees: a live line on a terminal, now and then a plain line in a log file. Main rank only."""

import math
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from nvlm_train.config.schema import Run
from nvlm_train.training.metrics import Sink, StepRecord
from nvlm_train.training.preemption import to_stderr
from nvlm_train.training.recent import Recent

LAGS = 0.05     # of a step: from which a rank that the others wait for is named


class ProgressLine(Sink):
    """Shows step, loss, learning rate, gradient norm, speed, fill, share of time waiting for data, time left.

    On a terminal one line is kept up to date; elsewhere about a hundred plain lines a stage are printed, never closer than
    `run.log_every` steps, and always the first, the last and skipped steps.
    """

    def __init__(self, run: Run, console: Console | None = None) -> None:
        self._run, self._steps = run, run.train.steps
        self._console = console or Console(soft_wrap=True, highlight=False)
        self._plain_every = max(run.run.log_every, math.ceil(self._steps / 100), 1)
        self._recent = Recent()
        self._live: Progress | None = None

    def step(self, record: StepRecord) -> None:
        row = record.row
        self._recent.append(row)
        text = describe(row, self._recent, self._steps)
        if self._console.is_terminal:
            self._live_update(row["step"], text)
        elif row["step"] % self._plain_every == 0 or row["step"] == self._steps or row["skipped"] or self._recent.seen == 1:
            self._console.print(f"{time.strftime('%H:%M:%S')}  {self._run.stage} {text}", markup=False)

    def evaluation(self, row: dict) -> None:
        loss = "no supervised tokens" if row.get("loss") is None else f"loss {row['loss']:.4f}"
        sources = "".join(f"  {source} {value:.4f}" for source, value in row.get("source_losses", {}).items())
        self._console.print(f"{row['stage']} {row['step']}/{self._steps}  validation {loss}{sources}", markup=False)

    def scored(self, row: dict, shown: Sequence[dict]) -> None:
        self._console.print(told(row), markup=False)

    def examples(self, stage: str, step: int, rows: Sequence[dict]) -> None:
        right = sum(row["correct"] is True for row in rows)
        self._console.print(f"{stage} {step}/{self._steps}  {right} of {len(rows)} examples right", markup=False)

    def stopping(self, text: str) -> None:
        """In a signal handler."""
        to_stderr(text)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _live_update(self, step: int, text: str) -> None:
        if self._live is None:
            self._live = Progress(
                TextColumn(f"[bold]{self._run.stage}"), BarColumn(bar_width=16), TextColumn("{task.fields[text]}", markup=False),
                console=self._console, refresh_per_second=4,
            )
            self._live.add_task("", total=self._steps, text=text)
            self._live.start()
        self._live.update(self._live.task_ids[0], completed=step, text=text)


def describe(row: dict, recent: Recent, steps: int) -> str:
    """One line about a step; speeds are means over the `recent` rows."""
    left = (steps - row["step"]) * recent.mean("step_s")
    parts = [
        f"{row['step']}/{steps}", f"loss {row['loss']:.4f}", f"lr {row['lr']:.2e}", f"grad {row['grad_norm']:.2f}",
        f"{recent.rate('samples'):.3g} samples/s", f"{human(recent.rate('tokens'))} tokens/s", f"fill {row['fill']:.0%}",
        f"wait {recent.rate('data_wait_s'):.0%}",
    ]
    if row["mfu"] is not None:
        parts.append(f"mfu {row['mfu']:.0%}")
    if row["straggler_share"] >= LAGS:
        parts.append(f"rank {row['slowest_rank']} ({row['slowest_host']}) slow, costs {row['straggler_share']:.0%}")
    if row["refused"]:
        parts.append(f"{row['refused']} refused")
    if row["skipped"]:
        parts.append("NOT FINITE: update skipped")
    return "  ".join([*parts, f"{duration(left)} left"])


def told(row: dict) -> str:
    """One line about a benchmark's score."""
    scores = row["scores"]
    compared = f", {100 * row['guard']['delta']:+.1f} points from the backbone" if row.get("guard") else ""
    return (f"{row['stage']} {row['step']}  {row['task']} {100 * scores['score']:.1f} "
            f"({100 * scores['low']:.1f} to {100 * scores['high']:.1f}){compared}")


def human(number: float) -> str:
    """A count in three digits: 950, 12.3k, 4.56M."""
    for limit, divisor, unit in ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e3, 1e3, "k")):
        if abs(number) >= limit:
            return f"{_three(number / divisor)}{unit}"
    return _three(number)


def _three(number: float) -> str:
    digits = max(0, 2 - int(math.log10(abs(number)))) if abs(number) >= 1 else 2
    return f"{number:.{digits}f}" if number != int(number) else str(int(number))


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m 05s, 2h 07m, 3d 04h."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"
