"""Whether designs may be compared: what must be the same in all of them, and what differs.

A difference in scores says something about designs only if they saw the same samples in the same order for as many steps, read by
the same tokenizer, from the same backbones. Whatever else differs is told on the page.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvlm_train.comparison.designs import Design
from nvlm_train.config.dump import as_tree
from nvlm_train.config.schema import Run
from nvlm_train.errors import ConfigError

ABSENT = "absent"
ALL = "all"            # stages, of a setting that differs alike in each of them

SAME = ("data.blend", "data.validation", "train.seed", "train.steps", "train.global_batch", "model.tokenizer",
        "model.language", "model.vision.weights")
"""Settings, or groups of settings, that must not differ. The order of samples follows from seed, blend and global batch."""

_NAMES_ONLY = ("recipe", "stage", "run.dir")    # differ in every run and change nothing


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all designs. values: design -> value as text."""

    stage: str
    key: str
    values: Mapping[str, str]


def refuse_unfair(designs: Sequence[Design]) -> None:
    """Raises ConfigError with every difference that makes a comparison say nothing, with the values on both sides."""
    stages = {design.name: [run.stage for run in design.runs] for design in designs}
    if len({tuple(names) for names in stages.values()}) > 1:
        told = "; ".join(f"{name}: {', '.join(names)}" for name, names in stages.items())
        raise ConfigError(f"the designs do not train the same stages ({told}): give stage= once, for all of them")
    found = differences(designs)
    problems = [_refusal(same, inside) for same in SAME if (inside := [each for each in found if _within(each.key, same)])]
    if problems:
        lead = ("these designs cannot be compared: they need the same data, steps, tokenizer and backbones. Give all of them the same "
                "(train.steps=…, or stages.sft.train.steps=… for one stage)")
        raise ConfigError([lead, *problems])


def differences(designs: Sequence[Design]) -> list[Difference]:
    """Every setting that is not the same in all designs, those that differ alike in every stage told once."""
    found = _all_differences(designs)
    stages = len(designs[0].runs)
    once = []
    for difference in found:
        alike = [other for other in found if (other.key, other.values) == (difference.key, difference.values)]
        if len(alike) == stages > 1:
            difference = Difference(ALL, difference.key, difference.values)
        if difference not in once:
            once.append(difference)
    return once


def shared_settings(designs: Sequence[Design]) -> dict[str, dict[str, str]]:
    """Stage -> what was kept the same, in short: setting -> its value as text."""
    return {run.stage: {
        "data": ", ".join(f"{name} {source.weight:g}" for name, source in run.data.blend.items()),
        "steps": f"{run.train.steps:,} of {run.train.global_batch:,} samples",
        "tokenizer": run.model.tokenizer,
        "vision encoder": run.model.vision.weights or "random weights",
        "language model": run.model.language.weights or "random weights",
    } for run in designs[0].runs}


def _refusal(same: str, inside: Sequence[Difference]) -> str:
    """One sentence about a group that must be the same: its first difference with all values, the others counted."""
    first, *others = inside
    told = ", ".join(f"{value} in {name}" for name, value in first.values.items())
    where = "" if first.stage == ALL else f" ({first.stage})"
    more = f"; {len(others)} more of {same} differ" if others else ""
    return f"{first.key}{where} is {told}{more}"


def _within(key: str, group: str) -> bool:
    return key == group or key.startswith(f"{group}.")


def _all_differences(designs: Sequence[Design]) -> list[Difference]:
    """One for each stage and setting, in the order of the schema."""
    found = []
    for of_stage in zip(*(design.runs for design in designs), strict=True):
        settings = [dict(flat_settings(run)) for run in of_stage]
        for key in dict.fromkeys(key for each in settings for key in each):
            values = [each.get(key, ABSENT) for each in settings]
            if any(value != values[0] for value in values):
                names = (design.name for design in designs)
                found.append(Difference(of_stage[0].stage, key, dict(zip(names, map(as_text, values), strict=True))))
    return found


def flat_settings(run: Run) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that is set in a run, its name and folder apart. `data.blend` and `data.validation`
    themselves are the names of their sources, whose order counts."""
    yield "data.blend", list(run.data.blend)
    yield "data.validation", list(run.data.validation)
    for key, value in _leaves(as_tree(run), ""):
        if key not in _NAMES_ONLY:
            yield key, value


def _leaves(tree: Mapping, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif not isinstance(value, Mapping):
            yield prefix + key, value


def as_text(value: Any) -> str:
    """A setting's value as a person writes it."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(as_text, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not set"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
