"""What the verbs that write shards have in common on the command line: IN, OUT, --workers, a bar, and the sums at the end."""

import argparse
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep.passes import PASSED, Source, run_pass
from nvlm_train.errors import DataError

LINES = 20      # printed in all where the output is no terminal


def parser_of(verb: str, description: str, source: str | None = "folder of indexed shards", many: bool = False) -> argparse.ArgumentParser:
    """A parser with the arguments that all passes take. source: help of the first one; None: the verb has its own; many: a list."""
    parser = argparse.ArgumentParser(prog=f"python -m data_prep {verb}", description=description)
    if source:
        parser.add_argument("source", metavar="IN", type=Path, nargs="+" if many else None, help=source)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; begun before, it is gone on with")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=positive, default=cores, metavar="N", help=f"processes (default: the {cores} cores of this machine)")
    return parser


def positive(text: str) -> int:
    """The type of an option that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def show_pass(verb: str, source: Source, out: Path, workers: int, samples_per_shard: int | None = None,
              console: Console | None = None) -> dict:
    """`run_pass`, watched: a bar on a terminal, a line now and then elsewhere, and what became of the samples. Returns the manifest."""
    console = console or Console(highlight=False, soft_wrap=True)
    columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[text]}", markup=False))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(verb, total=None, text="")
        shown = 0

        def show(done: int, units: int, sums: Mapping) -> None:
            nonlocal shown
            text = f"{sums['kept']:,} of {sums['in']:,} samples kept"
            bar.update(task, total=units, completed=done, text=text)
            if not console.is_terminal and done * LINES // max(units, 1) > shown:
                shown = done * LINES // units
                console.print(f"{verb} {done:,}/{units:,}  {text}")

        manifest = run_pass(verb, source, out, workers, samples_per_shard, show)
    console.print(*told(manifest, out), sep="\n", markup=False)
    return manifest


def watch(work: Iterable[object], count: int, doing: str, console: Console) -> None:
    """See `count` pieces of work through, saying about ten times how many are done."""
    for done, _ in enumerate(work, 1):
        if done * 10 // count > (done - 1) * 10 // count:
            console.print(f"{doing} {done:,}/{count:,}")


def told(manifest: Mapping, out: Path) -> list[str]:
    """A manifest, for a person."""
    size = f"{manifest['images']:,} images, {manifest['shards']:,} shards, {manifest['bytes'] / 1e6:,.1f} MB"
    lines = [f"{out}: {manifest['kept']:,} of {manifest['in']:,} samples kept, {size}"]
    lines += [f"  rejected {count:>9,}  {reason}" for reason, count in _largest_first(manifest["rejected"])]
    lines += [f"  repaired {count:>9,}  {repair}" for repair, count in _largest_first(manifest["repaired"])]
    if manifest["rejected"]:
        lines.append(f"  each with its reason: {out / PASSED}/*.rejected.jsonl")
    return lines


def _largest_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def existing_folder(path: Path, what: str) -> Path:
    """Raises DataError if there is no such folder."""
    if not path.is_dir():
        raise DataError(f"{what}: no folder at {path}")
    return path
