"""Checkpoint folders: names, what counts as complete, and the few operations that make or unmake one.

    <run.dir>/checkpoints/<stage>/step-00000100/     published, complete
                                  .partial-…         being written, or left by a save that died: never loaded
                                  .aside-…           kept for a person, never loaded and never deleted by us
                                  .removing-…        on its way out

A folder becomes a checkpoint by one rename of a finished `.partial-…`, so a reader sees all of it or nothing. There is no
"latest" pointer that could be wrong: the newest complete folder is found by looking.
"""

import logging
import os
import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from nvlm_train.engine.manifest import MANIFEST, Manifest
from nvlm_train.errors import CheckpointError, TrainingError

STAGES = ("pretrain", "sft")    # in the order of training
PARTIAL, ASIDE, REMOVING = ".partial-", ".aside-", ".removing-"
_STEP = re.compile(r"step-(\d{8,})")
_log = logging.getLogger(__name__)


def step_folder(step: int) -> str:
    """The folder name of a step: `step-00000100`."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step that a folder's name stands for; None if it is no step folder's name."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def why_incomplete(folder: Path) -> str | None:
    """What makes this folder no complete checkpoint, by names and sizes only; None if nothing does."""
    try:
        return Manifest.read(folder).problem_with_files(folder)
    except CheckpointError as problem:
        return str(problem)


def run_dir_of(step: Path) -> Path | None:
    """The run directory that a step folder lies in; None for a checkpoint that was moved out of one."""
    folder = step.resolve().parents[2]
    return folder if (folder / "config.yaml").is_file() else None


def complete_steps(stage: Path) -> dict[int, Path]:
    """Step -> folder of every complete checkpoint of a stage folder, oldest first. Says which folders it passed over, and why."""
    found = {}
    for path in sorted(stage.iterdir()) if stage.is_dir() else ():
        step = step_of(path)
        if path.name.startswith(PARTIAL):
            _log.warning("%s is an unfinished save: passed over", path)
        elif step is not None and path.is_dir():
            if problem := why_incomplete(path):
                _log.warning("%s is no complete checkpoint: passed over (%s)", path, problem)
            else:
                found[step] = path
    return dict(sorted(found.items()))


def resolve(path_like: str | os.PathLike) -> Path:
    """The newest complete step folder of a run folder (its furthest stage), a stage folder or a step folder.

    Raises CheckpointError that names what was looked at.
    """
    path = Path(path_like)
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}: {'it is a file' if path.exists() else 'there is no such folder'}. "
                              "Give a run folder, a stage folder or a step folder")
    if step_of(path) is not None or (path / MANIFEST).is_file():
        if problem := why_incomplete(path):
            raise CheckpointError(f"{path} is not a complete checkpoint: {problem}")
        return path
    for base in (path / "checkpoints", path):
        if not base.is_dir():
            continue
        stages = [base / name for name in reversed(STAGES) if (base / name).is_dir()]
        for stage in [*stages, base]:
            if steps := complete_steps(stage):
                return steps[max(steps)]
    seen = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise CheckpointError(f"no complete checkpoint in {path} (it holds {seen}). Looked for step-… folders there, in its stages "
                          f"({', '.join(STAGES)}) and in its checkpoints/ folder")


def is_checkpoint(path_like: str | os.PathLike) -> bool:
    """Whether a path is a run, a stage or a step folder with a complete checkpoint, rather than a file or other folder."""
    try:
        resolve(path_like)
    except CheckpointError:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(partial: Path, target: Path) -> None:
    """Turn a finished partial folder into a checkpoint: one rename, durable when this returns."""
    sync_folder(partial)
    os.rename(partial, target)
    sync_folder(target.parent)


def set_aside(folder: Path) -> Path:
    """Rename a folder so that it is never loaded, and keep it. Returns where it now lies."""
    aside = folder.with_name(f"{ASIDE}{folder.name}-{uuid.uuid4().hex[:8]}")
    os.rename(folder, aside)
    return aside


def remove(folder: Path) -> None:
    """Delete a checkpoint so that a half-deleted one is never taken for a whole one."""
    doomed = folder if folder.name.startswith(REMOVING) else folder.with_name(f"{REMOVING}{folder.name}-{uuid.uuid4().hex[:8]}")
    if doomed != folder:
        os.rename(folder, doomed)
    shutil.rmtree(doomed)


def remove_leftovers(stage: Path) -> None:
    """Delete what interrupted saves and deletions left in a stage folder. Only call while nothing is being saved there."""
    for path in stage.iterdir():
        if path.name.startswith((PARTIAL, REMOVING)) and path.is_dir():
            _log.warning("removing %s, left by an interrupted %s", path, "save" if path.name.startswith(PARTIAL) else "deletion")
            remove(path)


def check_disk(folder: Path, needed: int = 0) -> None:
    """Make sure that a folder can be written to and has `needed` bytes free (10% are added).

    Raises TrainingError that gives both numbers.
    """
    probe = folder / f".write-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            file.write(b"written to see whether it can be")
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        raise TrainingError(f"checkpoints cannot be written to {folder}: {problem.strerror or problem}. "
                            "Free or unlock it, or set run.dir to another place") from problem
    finally:
        with suppress(OSError):
            probe.unlink()
    free = shutil.disk_usage(folder).free
    if free < needed * 1.1:
        raise TrainingError(f"a checkpoint needs about {as_size(needed * 1.1)} but {folder} has {as_size(free)} free. "
                            "Free some space, lower run.keep_last, or set run.dir to another disk")


def as_size(count: float) -> str:
    """Bytes for people: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")
