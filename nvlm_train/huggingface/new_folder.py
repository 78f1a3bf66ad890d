"""A folder that appears whole or not at all: written beside its place under another name, and renamed when it is finished."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nvlm_train.engine.folders import PARTIAL, as_size, sync_folder
from nvlm_train.errors import ConfigError, TrainingError


def refuse_existing(target: Path) -> None:
    """Raise ConfigError if there is something: asked early, before hours of reading; `new_folder` asks again."""
    if target.exists() or target.is_symlink():
        raise ConfigError(f"to={target} exists already, and nothing is written over: name another folder, or move that one away")


@contextmanager
def new_folder(target: Path, needed: int) -> Iterator[Path]:
    """An empty folder to write to, which becomes `target` when the block ends, and is removed if the block fails.

    needed: bytes that will be written. Raises ConfigError if the target exists, TrainingError if the disk is too small or cannot
    be written to.
    """
    refuse_existing(target)
    partial = target.with_name(f"{PARTIAL}{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < needed * 1.02:
            raise TrainingError(f"{target} needs {as_size(needed * 1.02)}, and {target.parent} has {as_size(free)} free: make "
                                "room, or name a folder on another disk")
        partial.mkdir()
        yield partial
        sync_folder(partial)
        os.rename(partial, target)
        sync_folder(target.parent)
    except OSError as problem:
        raise TrainingError(f"{target} cannot be written: {problem.strerror or problem}. It needs {as_size(needed)}") from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)
