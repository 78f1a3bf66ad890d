"""A dataclass of limits as command-line options: each limit is named, defaulted and explained once, where it is defined."""

import argparse
from dataclasses import MISSING, field, fields
from typing import Any, TypeVar

Limits = TypeVar("Limits")


def limit(default: Any, told: str, **more: Any) -> Any:
    """A dataclass field that is also an option. told: its help; more: passed to `add_argument` (`choices`, `metavar`)."""
    return field(default=default, metadata={"help": told, **more})


def add_options(parser: argparse.ArgumentParser, *kinds: type) -> None:
    """`--short-side 28` for the field `short_side`; `--no-text-repair` for a field `text_repair` that is true by default."""
    for kind in kinds:
        group = parser.add_argument_group(kind.__name__.lower(), (kind.__doc__ or "").strip().splitlines()[0])
        for item in fields(kind):
            if item.default is MISSING or not item.metadata:
                continue
            more = dict(item.metadata)
            told = more.pop("help").replace("%", "%%")
            name = item.name.replace("_", "-")
            if isinstance(item.default, bool):
                flag, action = (f"--no-{name}", "store_false") if item.default else (f"--{name}", "store_true")
                group.add_argument(flag, dest=item.name, action=action, help=told)
            else:
                group.add_argument(f"--{name}", dest=item.name, type=type(item.default), default=item.default,
                                   help=f"{told} (default %(default)s)", **more)


def from_options(kind: type[Limits], options: argparse.Namespace, **given: Any) -> Limits:
    """The dataclass with the values of the command line; `given` for fields that are no options."""
    values = {item.name: getattr(options, item.name) for item in fields(kind) if item.metadata}
    return kind(**values, **given)
