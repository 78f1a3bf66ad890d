"""How a stage's settings come about: shared values, the stage's own, then the command line's. Plain dictionaries only.

Order, later ones winning: shared YAML < YAML `stages.<stage>.…` < `train.x=…` given < `stages.<stage>.train.x=…` given.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nvlm_train.config.schema import Run
from nvlm_train.config.typed import by_name, is_group, key_paths, kind_at, split_key, suggestion, unknown_keys

STAGES = ("pretrain", "sft")
PER_STAGE = ("model", "train", "data", "layout")    # groups that may differ between the stages of one run
SHARED = (*PER_STAGE, "engine", "init", "run", "evaluate", "guard")      # all that may be set without naming a stage
_SHORT = {"profile": "run.profile"}                 # words of the command line for settings that are asked for now and then


@dataclass(frozen=True, eq=False)
class Assignment:
    """One value given on the command line, or a deletion. `path` is without `stages.<stage>`; stage None: every stage."""

    path: tuple[str, ...]
    value: Any = None
    stage: str | None = None
    delete: bool = False

    @property
    def shown(self) -> str:
        return ".".join((*(("stages", self.stage) if self.stage else ()), *self.path))


def path_of(key: str) -> tuple[str, ...]:
    """The path that a key of the command line means, `stages.<stage>` included."""
    key = _SHORT.get(key, key)
    first, *rest = key.split(".", 2)
    if first == "stages" and len(rest) == 2:
        return (first, rest[0], *split_key(Run, rest[1]))
    return split_key(Run, key)


def within_stage(path: tuple[str, ...]) -> tuple[str, ...]:
    """The path without a leading `stages.<stage>`."""
    return path[2:] if path[0] == "stages" else path


def assignments(path: tuple[str, ...], value: Any, delete: bool = False) -> Iterator[Assignment]:
    """What assigning `value` at `path` sets: one assignment, or one for each leaf where `path` is a group of settings.

    So train={lr:1e-4,steps:5} leaves the rest of `train` alone, while data.blend={mine:{path:x}}, a map with free names,
    replaces the whole blend. A word for a group that has a name is that name: engine=deepspeed.
    """
    staged = path[0] == "stages"
    inner = within_stage(path)
    value = by_name(kind_at(Run, inner), value)
    is_branch = len(path) < 3 if staged and not inner else is_group(kind_at(Run, inner))
    if is_branch and isinstance(value, dict) and value:
        for name, item in value.items():
            yield from assignments((*path, str(name)), item, delete)
    elif staged and inner:
        yield Assignment(inner, value, path[1], delete)
    else:
        yield Assignment(path, value, None, delete)


def stage_tree(tree: dict, stage: str, given: Sequence[Assignment]) -> tuple[dict, set[Assignment]]:
    """(the settings of one stage before `${…}` is resolved, the deletions that found nothing to delete)."""
    merged = {key: copy.deepcopy(tree[key]) for key in SHARED if key in tree}
    _merge(merged, copy.deepcopy((tree.get("stages") or {}).get(stage) or {}))
    idle = set()
    for assignment in (*(a for a in given if a.stage is None), *(a for a in given if a.stage == stage)):
        if not _apply(merged, assignment):
            idle.add(assignment)
    return merged, idle


def unknown_in_tree(tree: dict) -> Iterator[str]:
    """Unknown keys of a composed recipe, in its shared part and in its stages."""
    yield from unknown_keys(Run, {key: value for key, value in tree.items() if key not in ("stages", "stage")})
    for stage, overlay in (tree.get("stages") or {}).items():
        yield from _unknown_in_stage(stage, overlay or {})


def unknown_in_assignments(given: Sequence[Assignment]) -> Iterator[str]:
    known = [key for key in key_paths(Run) if key.split(".")[0] in SHARED] + ["stage", "stages", "recipe"]
    for assignment in given:
        nested = None if assignment.delete else assignment.value
        for part in reversed(assignment.path):
            nested = {part: nested}
        if assignment.stage:
            yield from _unknown_in_stage(assignment.stage, nested)
        elif assignment.path[0] in SHARED:
            yield from unknown_keys(Run, nested)
        else:
            yield f"{assignment.shown}: unknown key{suggestion(assignment.shown, known)}"


def _unknown_in_stage(stage: str, overlay: dict) -> Iterator[str]:
    prefix = f"stages.{stage}."
    if stage not in STAGES:
        yield f"stages.{stage}: unknown stage{suggestion(stage, list(STAGES))}"
        return
    fixed = [key for key in overlay if key in SHARED and key not in PER_STAGE]
    yield from (f"{prefix}{key}: is the same for every stage; set {key} itself" for key in fixed)
    yield from unknown_keys(Run, {key: value for key, value in overlay.items() if key not in fixed}, prefix)


def _merge(target: dict, extra: dict) -> None:
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _apply(tree: dict, assignment: Assignment) -> bool:
    """Set or delete one value in place; False if there was nothing to delete."""
    *parents, last = assignment.path
    node = tree
    for part in parents:
        if not isinstance(node.get(part), dict):
            if assignment.delete:
                return False
            node[part] = {}
        node = node[part]
    if assignment.delete:
        found = last in node
        node.pop(last, None)
        return found
    node[last] = copy.deepcopy(assignment.value)
    return True
