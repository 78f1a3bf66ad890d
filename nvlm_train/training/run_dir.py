"""The run directory: who may use it, its config.yaml, and its logs of one JSON object a line.

    config.yaml     the resolved configuration      checkpoints/<stage>/step-00000100/
    metrics.jsonl, samples.jsonl, eval.jsonl        lock, lock.owner: held while a process trains here
    segments.json   the blends of each stage        report.html
    wandb/, tensorboard/: when asked for
"""

import json
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from nvlm_train.errors import TrainingError
from nvlm_train.training.logs import EVAL, METRICS, SAMPLES, parse_row, write_atomically

STAGES = ("pretrain", "sft")
SEGMENTS = "segments.json"
_OWN = {"config.yaml", SEGMENTS, "lock", "lock.owner", "checkpoints", METRICS, SAMPLES, EVAL}

log = logging.getLogger(__name__)


def claim(path: Path, resume: str) -> FileLock:
    """Make `path` ours to train in until the returned lock is released (or this process dies). Main rank only.

    resume: `run.resume`. Raises TrainingError if another process trains here, if the directory holds a run and `resume` is
    "never", or if it holds something that is not a run.
    """
    found = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if found - {"lock", "lock.owner"}:
        if not found & (_OWN - {"lock", "lock.owner"}):
            raise TrainingError(
                f"{path} is not empty and holds no run ({len(found)} entries, such as {min(found)!r}): choose another run.dir"
            )
        if resume == "never":
            raise TrainingError(
                f"{path} already holds a run and run.resume=never: choose another run.dir, move the old run away, "
                "or go on with it by run.resume=auto"
            )
    path.mkdir(parents=True, exist_ok=True)
    return _lock(path)


def _lock(path: Path) -> FileLock:
    """An operating-system lock: it goes with its process, so a killed run leaves nothing stale."""
    lock, owner = FileLock(path / "lock"), path / "lock.owner"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = owner.read_text(encoding="utf-8").strip() if owner.exists() else "an unknown process"
        raise TrainingError(f"{path} is in use by {who}: wait for it, stop it, or choose another run.dir") from None
    except (NotImplementedError, OSError) as error:
        log.warning("cannot lock %s (%s): make sure that no other run writes there", path, error)
        return lock
    job = f", job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    owner.write_text(f"process {os.getpid()} on {socket.gethostname()}{job}, since {began}\n", encoding="utf-8")
    return lock


def write_segments(path: Path, stage: str, segments: Sequence[Mapping]) -> None:
    """Put down which blends a stage is trained on (data/segments.py), beside those of the other stages."""
    content = {**read_segments(path), stage: list(segments)}
    write_atomically(path / SEGMENTS, (json.dumps(content, indent=1) + "\n").encode("utf-8"))


def read_segments(path: Path) -> dict[str, list[dict]]:
    """Stage -> its segments; {} if none were put down."""
    try:
        content = json.loads((path / SEGMENTS).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def cut_after(path: Path, stage: str, step: int) -> int:
    """Drop the log rows that a resumed run will write again: later steps of `stage`, and later stages. Returns how many.

    Every log of the run directory is replaced as a whole or not at all. A line that a crash cut short is dropped too.
    """
    dropped = 0
    for name in (METRICS, SAMPLES, EVAL):
        log_path = path / name
        if not log_path.exists():
            continue
        lines = log_path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _kept(line, stage, step)]
        if len(kept) < len(lines):
            dropped += len(lines) - len(kept)
            write_atomically(log_path, b"".join(kept))
    return dropped


def _kept(line: bytes, stage: str, step: int) -> bool:
    row = parse_row(line)
    if row is None or row.get("stage") not in STAGES:
        return row is not None and line.endswith(b"\n")     # a score of something else than a training stage is not ours to cut
    order = STAGES.index(row["stage"]) - STAGES.index(stage)
    return line.endswith(b"\n") and (order < 0 or (order == 0 and row.get("step", 0) <= step))
