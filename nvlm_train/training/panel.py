"""A run at a moment as a panel of text that fits any width: `panel` is a pure function of what is watched."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nvlm_train.training.progress import LAGS, duration, human
from nvlm_train.training.watched import Watched

WIDE = 76           # columns from which figures stand in two columns
_BLOCKS, _LETTERS = "▁▂▃▄▅▆▇█", "_.,-=+*#"
_WAITS = 0.1        # of a step: above it the data path is too slow


class Curve:
    """A line of text that shows numbers by height, as wide as there is room. What is not finite is an x."""

    def __init__(self, values: Sequence[float]) -> None:
        self._values = values

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(sparkline(self._values, options.max_width, _LETTERS if options.ascii_only else _BLOCKS), no_wrap=True, style="cyan")


def sparkline(values: Sequence[float], width: int, blocks: str = _BLOCKS) -> str:
    """At most `width` signs, each the mean of its share of the values, from the lowest of `blocks` to the highest."""
    columns = min(width, len(values))
    edges = [i * len(values) // columns for i in range(columns + 1)] if columns else []
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    finite = [mean for mean in means if math.isfinite(mean)]
    if not finite:
        return "x" * len(means)
    low, span = min(finite), max(finite) - min(finite)
    top = len(blocks) - 1
    return "".join(blocks[round((mean - low) / span * top) if span else 0] if math.isfinite(mean) else "x" for mean in means)


def panel(watched: Watched, width: int) -> Panel:
    """The whole view, `width` columns wide."""
    parts: list = [_progress(watched)]
    if watched.row is not None:
        parts += [_loss(watched), _figures(watched, width)]
        if watched.row["source_losses"]:
            parts.append(_line("by source", "  ".join(f"{name} {loss:.4f}" for name, loss in watched.row["source_losses"].items())))
    if watched.events:
        parts += [Text(), *(Text(event, style="yellow") for event in watched.events)]
    if watched.stopping:
        parts.append(Text(watched.stopping, style="bold red"))
    return Panel(Group(*parts), title=Text(f"{watched.recipe}, {watched.stage}"), width=width, padding=(0, 1))


def _progress(watched: Watched) -> Table:
    table = Table.grid(padding=(0, 1), expand=True)
    for ratio in (None, 1, None):
        table.add_column(ratio=ratio, no_wrap=True)
    for name, done, steps in watched.stages:
        here = name == watched.stage
        left = f"  {duration(watched.seconds_left)} left" if here and watched.row is not None and done < steps else ""
        table.add_row(Text(name, style="bold" if here else "dim"), ProgressBar(steps, done), Text(f"{done:,}/{steps:,}{left}"))
    return table


def _loss(watched: Watched) -> Table:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, no_wrap=True)
    table.add_row(Text.assemble(("loss ", "dim"), (f"{watched.row['loss']:.4f}", "bold")), Curve(list(watched.losses)))
    return table


def _figures(watched: Watched, width: int) -> Table:
    shown = list(_pairs(watched))
    columns = 2 if width >= WIDE else 1
    table = Table.grid(padding=(0, 1), expand=True)
    for _ in range(columns):
        table.add_column(style="dim", no_wrap=True)
        table.add_column(ratio=1)
    for start in range(0, len(shown), columns):
        table.add_row(*(cell for pair in shown[start:start + columns] for cell in pair))
    return table


def _pairs(watched: Watched) -> Iterator[tuple[str, Text]]:
    """(name, value) of what is known; what there is none of is left out, so that nothing stands still at zero."""
    row = watched.row
    yield "lr", Text(f"{row['lr']:.2e}")
    yield "grad norm", Text(f"{row['grad_norm']:.2f}")
    yield "speed", Text(f"{human(watched.recent.rate('tokens'))} tokens/s, {watched.recent.rate('samples'):.3g} samples/s")
    flops = f"{row['tflops']['total']:.3g} TFLOP/s a device"
    yield "compute", Text(flops if row["mfu"] is None else f"{flops}, MFU {watched.recent.mean('mfu'):.0%}")
    waits = watched.recent.rate("data_wait_s")
    yield "data wait", Text(f"{waits:.0%} of a step", style="red" if waits > _WAITS else "")
    if row["slowest_rank"] is not None:
        lag = row["straggler_share"]
        yield "slowest", Text(f"rank {row['slowest_rank']} on {row['slowest_host']}, costs {lag:.0%}", style="red" if lag >= LAGS else "")
    yield "memory", Text(f"{row['peak_memory_gib']:.1f} GiB at most")
    yield "fill", Text(f"{watched.recent.mean('fill'):.0%} of the rows")
    if watched.validation is not None:
        loss = watched.validation["loss"]
        yield "validation", Text(f"{'nothing supervised' if loss is None else f'{loss:.4f}'} at {watched.validation['step']:,}")
    if watched.examples is not None:
        step, right, asked = watched.examples
        yield "examples", Text(f"{right} of {asked} right at {step:,}")
    if watched.saved is not None:
        step, seconds = watched.saved
        yield "checkpoint", Text(f"at {step:,}, stood still {seconds:.1f} s")
    if watched.skipped:
        yield "skipped", Text(f"{watched.skipped:,} steps, not finite", style="red")
    if watched.refused:
        yield "refused", Text(f"{watched.refused:,} samples", style="yellow")


def _line(name: str, text: str) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row(name, Text(text))
    return table
