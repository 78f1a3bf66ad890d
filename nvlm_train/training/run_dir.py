"""The run directory: who may use it, its config.yaml, and its logs of one JSON object a line.

    config.yaml     the resolved configuration      checkpoints/<stage>/step-00000100/
    metrics.jsonl, samples.jsonl, eval.jsonl,       lock, lock.owner: held while a process trains here
    examples.jsonl: the logs                        predictions.jsonl: for the report
    segments.json   the blends of each stage        report.html
    benchmarks/     answers and scores, of the backbone and after steps
    profile/<stage>/: trace, summary and page, when asked for (`profile`)
    wandb/, tensorboard/: when asked for            status.json, next: how it stands, for the launcher (`status`)
    slurm/          batch scripts and what jobs print, where `nvlm submit` started the run
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from nvlm_train.engine.folders import set_aside, step_of
from nvlm_train.errors import TrainingError
from nvlm_train.training.logs import EVAL, EXAMPLES, METRICS, SAMPLES, parse_row, write_atomically
from nvlm_train.training.owner import OWNER, InUse, Owner, described
from nvlm_train.training.status import NEXT, STATUS

STAGES = ("pretrain", "sft")
SEGMENTS = "segments.json"
_OWN = {"config.yaml", SEGMENTS, "checkpoints", METRICS, SAMPLES, EVAL, EXAMPLES}
# What a job may leave behind that never began to train; slurm/ is what submitted it.
_NO_RUN = {"lock", OWNER, STATUS, NEXT, "slurm"}

log = logging.getLogger(__name__)


class Claim:
    """A run directory that is this process's until `release`, or until it dies."""

    def __init__(self, lock: FileLock, owner: Owner) -> None:
        self._lock, self._owner = lock, owner

    def release(self) -> None:
        self._owner.release()
        self._lock.release()


def claim(path: Path, resume: str) -> Claim:
    """Make `path` ours to train in until the claim is released (or this process dies). Main rank only.

    resume: `run.resume`. Raises InUse if another process trains here, TrainingError if the directory holds a run and `resume` is
    "never", or if it holds something that is not a run.
    """
    found = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if found - _NO_RUN:
        if not found & _OWN:
            raise TrainingError(
                f"{path} is not empty and holds no run ({len(found)} entries, such as {min(found)!r}): choose another run.dir"
            )
        if resume == "never":
            raise TrainingError(
                f"{path} already holds a run and run.resume=never: choose another run.dir, move the old run away, "
                "or go on with it by run.resume=auto"
            )
    path.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(path / "lock"), Owner(path)
    locked = _lock(path, lock)
    try:
        owner.take(locked)
    except InUse:
        lock.release()
        raise
    return Claim(lock, owner)


def _lock(path: Path, lock: FileLock) -> bool:
    """Take the operating system's lock, which goes with its process. Returns False where the file system has none."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = path / OWNER
        who = described(owner.read_text(encoding="utf-8")) if owner.exists() else "an unknown process"
        raise InUse(f"{path} is in use by {who}: wait for it, stop it, or choose another run.dir") from None
    except (NotImplementedError, OSError) as error:
        log.warning("cannot lock %s (%s): %s alone tells jobs apart", path, error, OWNER)
        return False
    return True


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
    for name in (METRICS, SAMPLES, EVAL, EXAMPLES):
        log_path = path / name
        if not log_path.exists():
            continue
        lines = log_path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _kept(line, stage, step)]
        if len(kept) < len(lines):
            dropped += len(lines) - len(kept)
            write_atomically(log_path, b"".join(kept))
    return dropped


def scores_aside(path: Path, stage: str, step: int) -> int:
    """Rename the answers to benchmarks of later steps of `stage`, and of later stages, which another model will give. Returns how many."""
    later = [folder for folder in (path / "benchmarks").glob("*-step-*") if folder.is_dir() and _is_later(folder.name, stage, step)]
    for folder in later:
        set_aside(folder)
    return len(later)


def _is_later(name: str, stage: str, step: int) -> bool:
    """Of a folder's name such as sft-step-00000100; what is named otherwise is not ours."""
    of, _, rest = name.partition("-")
    number = step_of(Path(rest))
    if of not in STAGES or number is None:
        return False
    return (STAGES.index(of), number) > (STAGES.index(stage), step)


def _kept(line: bytes, stage: str, step: int) -> bool:
    row = parse_row(line)
    if row is None or row.get("stage") not in STAGES:
        return row is not None and line.endswith(b"\n")     # a score of something else than a training stage is not ours to cut
    order = STAGES.index(row["stage"]) - STAGES.index(stage)
    return line.endswith(b"\n") and (order < 0 or (order == 0 and row.get("step", 0) <= step))
