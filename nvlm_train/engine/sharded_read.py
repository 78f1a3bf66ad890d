"""Reading a sharded state: the library reshards, we check beforehand that what is wanted is what is there."""

import difflib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedBase
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from torch.distributed.checkpoint.api import CheckpointException

from nvlm_train.engine.agree import on_every_rank, on_main
from nvlm_train.engine.interface import Engine
from nvlm_train.engine.safe_unpickle import closed_pickles, read_index
from nvlm_train.engine.sharded_write import INDEX, Contents, contents_of, merged
from nvlm_train.errors import CheckpointError
from nvlm_train.model.freeze import matches

_SHOWN = 8


def wanted_contents(engine: Engine, state: dict) -> Contents:
    """What the state of all ranks asks for: section -> key -> [dtype, global shape]. A collective."""
    return merged(on_every_rank(engine, "describing the model", lambda: contents_of(load_preprocess(state)[0]), CheckpointError))


def mismatches(saved: Mapping[str, Mapping[str, list]], wanted: Contents, allow: Sequence[str], casts: bool) -> list[str]:
    """Everything in which a checkpoint's contents differ from what is wanted, in the sections wanted.

    allow: components or name patterns (`connector`, `language.*.bias`) of keys that either side may lack.
    casts: other dtypes are fine (weights for a new run).
    """
    found = []
    for section, keys in wanted.items():
        stored = saved.get(section, {})
        lacking, strange = ([key for key in sorted(set(left) - set(right)) if not any(matches(pattern, key) for pattern in allow)]
                            for left, right in ((keys, stored), (stored, keys)))
        found += _listed(f"{section}: wanted here but not in the checkpoint", lacking, stored)
        found += _listed(f"{section}: in the checkpoint but not in this model", strange, keys)
        for key in sorted(set(keys) & set(stored)):
            (dtype_here, shape_here), (dtype_saved, shape_saved) = keys[key], stored[key]
            if shape_here != shape_saved:
                found.append(f"{section}: {key} has shape {shape_saved} in the checkpoint and {shape_here} here")
            elif dtype_here != dtype_saved and not casts:
                found.append(f"{section}: {key} is {dtype_saved} in the checkpoint and {dtype_here} here: resuming would round")
    return found


def _listed(title: str, keys: list[str], others: Mapping[str, list]) -> list[str]:
    lines = []
    for key in keys[:_SHOWN]:
        near = difflib.get_close_matches(key, others, n=1)
        lines.append(f"{title}: {key}" + (f" (nearest there: {near[0]})" if near else ""))
    if len(keys) > _SHOWN:
        lines.append(f"{title}: {len(keys) - _SHOWN} more")
    return lines


def read_state(engine: Engine, folder: Path, state: dict, lacking: set[str]) -> dict:
    """Fill a sharded state (made with `loading=True`) from a checkpoint whose files were verified. A collective.

    lacking: keys that the checkpoint does not have; what needs one of them keeps its present value.
    Returns the state with plain tensors, only the sections asked for. Raises CheckpointError on every rank.
    """
    asked = _without(state, lacking) if lacking else state

    def read() -> None:
        with closed_pickles(), _quiet():
            try:
                filled.update(dist_checkpointing.load(asked, str(folder)))
            except CheckpointException as problem:  # torch wraps the real one in pages of traceback
                first = next(iter(problem.failures.values()))[0]
                raise CheckpointError(f"{type(first).__name__}: {first}") from problem

    filled: dict[str, Any] = {}
    on_main(engine, f"reading {folder}", lambda: _check_index(folder), CheckpointError)
    on_every_rank(engine, f"reading {folder}", read, CheckpointError)
    return {section: _completed(filled.get(section, {}), state[section]) for section in state}


def _check_index(folder: Path) -> None:
    with (folder / INDEX).open("rb") as stream:
        read_index(stream)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' notes to their own developers (deprecations, single-process mode)."""
    notes = logging.getLogger("megatron.core.dist_checkpointing.strategies.common")
    level = notes.level
    notes.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        notes.setLevel(level)


def _without(state: Mapping, lacking: set[str]) -> dict:
    """A sharded state without the leaves that need a lacking key (a leaf may be stored as several tensors)."""
    left = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            left[name] = _without(value, lacking)
        elif not (isinstance(value, ShardedBase) and contents_of(load_preprocess({"": {"": value}})[0])[""].keys() & lacking):
            left[name] = value
    return left


def _completed(filled: dict, asked: Mapping) -> dict:
    """`filled` with the present values of what it lacks."""
    for key, value in asked.items():
        if isinstance(value, Mapping):
            filled[key] = _completed(filled.get(key, {}), value)
        elif key not in filled and isinstance(value, ShardedBase):
            filled[key] = value.data
    return filled
