"""`python -m data_prep convert`: a dataset in its public form becomes indexed shards.

What is converted is named by a family of formats with its options, or by an entry of the catalog, which knows both.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from data_prep.catalog.entries import load_catalog
from data_prep.command import parser_of, positive, show_pass
from data_prep.convert.families import FAMILIES, converter
from data_prep.convert.options import told
from data_prep.passes import Outcome, Source
from nvlm_train.config.typed import suggestion
from nvlm_train.errors import DataError

Resolver = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True)
class Limited:
    """The first `limit` outcomes of a source, in one unit: to try a conversion before it is done whole."""

    source: Source
    limit: int

    def units(self) -> Sequence[str]:
        return ["first"]

    def outcomes(self, unit: str) -> Iterator[Outcome]:
        return islice(chain.from_iterable(self.source.outcomes(name) for name in self.source.units()), self.limit)

    def settings(self) -> Mapping:
        return {**self.source.settings(), "limit": self.limit}


def from_catalog(name: str) -> Mapping[str, Any]:
    """What the catalog says of a dataset's conversion: `family`, and that family's options. Raises DataError for an unknown name."""
    catalog = load_catalog()
    if name not in catalog:
        raise DataError(f"{name!r} is neither a dataset of the catalog nor a family of formats{suggestion(name, [*catalog, *FAMILIES])} "
                        f"Families are {', '.join(FAMILIES)}; datasets: python -m data_prep catalog")
    return catalog[name].convert


def source_of(what: str, root: Path, given: Mapping[str, str], name: str, catalog: Resolver = from_catalog) -> Source:
    """The converter of a family, or of a catalog entry whose options those `given` go before. Raises DataError."""
    if what in FAMILIES:
        return converter(what, root, given, name)
    told_there = dict(catalog(what))
    family = told_there.pop("family")
    return converter(family, root, {**told_there, **given}, name)


def _options(pairs: Sequence[str]) -> dict[str, str]:
    """`--option KEY=VALUE`, each key once. Raises DataError."""
    options: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise DataError(f"--option is KEY=VALUE, found {pair!r}")
        if key in options:
            raise DataError(f"--option {key} is given twice, {options[key]!r} and {value!r}; several values go into one: {key}=a,b")
        options[key] = value
    return options


def _name(what: str, out: Path) -> str:
    """The default: the catalog's name, or that of the folder written to, as far as keys may hold it."""
    return what if what not in FAMILIES else re.sub(r"[^A-Za-z0-9_-]+", "_", out.resolve().name)[:40]


def _parser() -> argparse.ArgumentParser:
    """The arguments of all passes, behind what is converted and where it lies."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("what", metavar="NAME_OR_FAMILY", help="an entry of the catalog, or a family of formats")
    first.add_argument("root", metavar="ROOT", type=Path, help="the dataset's folder, as it was published")
    common = parser_of("convert", "", source=None)
    families = "\n".join(f"  {told(family, kind)}" for family, kind in FAMILIES.items())
    parser = argparse.ArgumentParser(
        prog=common.prog, parents=[first, common], add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Convert a dataset in its public form into indexed shards.",
        epilog=f"families and their options (docs/converters.md tells what each means; those with = are needed):\n{families}")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the family; several values: a,b")
    parser.add_argument("--name", help="what keys and samples call the dataset (default: the catalog's name, or that of OUT)")
    parser.add_argument("--samples-per-shard", type=positive, default=1000, metavar="N", help="at most (default %(default)s)")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N samples, kept or not, by one process: to try it")
    return parser


def main(arguments: list[str], catalog: Resolver = from_catalog) -> int:
    """`python -m data_prep convert NAME_OR_FAMILY ROOT OUT ...`; catalog: what to ask for names that are no family."""
    asked = _parser().parse_args(arguments)
    source = source_of(asked.what, asked.root, _options(asked.option), asked.name or _name(asked.what, asked.out), catalog)
    if asked.limit:
        source = Limited(source, asked.limit)
    show_pass("convert", source, asked.out, asked.workers, asked.samples_per_shard)
    return 0
