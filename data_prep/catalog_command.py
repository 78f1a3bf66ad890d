"""`python -m data_prep catalog`: the paper's datasets, listed, searched, counted, or one of them shown whole."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console

from data_prep.catalog.blend import blend_recipe
from data_prep.catalog.entries import TASKS, Entry, counts, entry, load_catalog
from data_prep.catalog.listing import markdown, table, whole
from nvlm_train.errors import DataError

GROUPS = sorted({group for groups in TASKS.values() for group in groups})
PIPED = 200     # columns of a table that is not shown on a terminal


def search(entries: Iterable[Entry], words: Sequence[str] = (), stage: str | None = None, task: str | None = None) -> list[Entry]:
    """Entries of a stage and a task group in which every word occurs: in name, title, task or note, in any case."""
    found = []
    for candidate in entries:
        groups = {where: group for where, group in candidate.task.items() if stage in (None, where) and task in (None, group)}
        names = [f"{where} {group} {TASKS[where][group]}" for where, group in groups.items()]
        text = " ".join([candidate.name, candidate.title, *names, candidate.note]).lower()
        if groups and all(word.lower() in text for word in words):
            found.append(candidate)
    return found


def main(arguments: list[str], console: Console | None = None) -> int:
    """Exit code 0. Raises DataError: no such dataset, or a damaged catalog."""
    options = _options(arguments)
    console = console or Console(highlight=False, width=None if sys.stdout.isatty() else PIPED)
    if options.words[:1] == ["show"]:
        return _show(options.words[1:], options.json)
    catalog = load_catalog()
    if options.markdown or options.blend:
        print(markdown(catalog) if options.markdown else blend_recipe(catalog), end="")
        return 0
    chosen = search(catalog.values(), options.words, options.stage, options.task)
    if options.count:
        for stage, count in counts({found.name: found for found in chosen}).items():
            if options.stage in (None, stage):
                print(stage, count)
    elif options.json:
        print(json.dumps([dataclasses.asdict(found) for found in chosen], indent=2, ensure_ascii=False))
    else:
        console.print(table(chosen))
        console.print(f"{len(chosen)} of {len(catalog)} datasets; one whole: python -m data_prep catalog show NAME", soft_wrap=True)
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data_prep catalog", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORDS", help="list those in which all words occur; or: show NAME")
    parser.add_argument("--stage", choices=TASKS)
    parser.add_argument("--task", choices=GROUPS, help="task group of the paper")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--count", action="store_true", help="only how many, by stage")
    form.add_argument("--json", action="store_true")
    form.add_argument("--markdown", action="store_true", help="docs/datasets.md")
    form.add_argument("--blend", action="store_true", help="recipes/blend/nvlm_paper.yaml")
    return parser.parse_args(arguments)


def _show(names: Sequence[str], as_json: bool) -> int:
    if len(names) != 1:
        raise DataError(f"catalog show takes one name, got {len(names)}: python -m data_prep catalog show chartqa")
    found = entry(names[0])
    print(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False) if as_json else "\n".join(whole(found)))
    return 0
