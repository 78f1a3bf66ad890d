"""The run directory's disk: how fast each node writes there, and whether the checkpoints of a run fit on it."""

import os
import shutil
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nvlm_train.config.schema import Run
from nvlm_train.model.parameters import trained_names, whole_parameters

PROBE = ".write-speed-"
MOST_BYTES, MOST_S = 256 << 20, 3.0
_CHUNK = 8 << 20


@dataclass(frozen=True)
class Written:
    """bytes in seconds, durable; or why not."""

    bytes: int
    seconds: float
    problem: str = ""

    @property
    def mb_s(self) -> float:
        return self.bytes / self.seconds / 1e6 if self.seconds else 0.0


def write_speed(folder: Path, most_bytes: int = MOST_BYTES, most_s: float = MOST_S) -> Written:
    """Write a file for at most so many bytes and seconds, make it durable, and remove it, whatever happens."""
    path, chunk = folder / f"{PROBE}{uuid.uuid4().hex[:12]}", os.urandom(_CHUNK)    # random: some file systems compress
    written, began = 0, time.perf_counter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("xb", buffering=0) as file:
            while written < most_bytes and time.perf_counter() - began < most_s:
                written += file.write(chunk)
            os.fsync(file.fileno())
        return Written(written, time.perf_counter() - began)
    except OSError as error:
        return Written(written, time.perf_counter() - began, error.strerror or str(error))
    finally:
        with suppress(OSError):
            path.unlink()


def checkpoint_bytes(run: Run, gpu: bool) -> int:
    """What a checkpoint of the run takes: all weights in the compute dtype, and of the trained ones the optimizer's two moments and, in
    bf16, fp32 master weights."""
    bf16 = run.model.dtype == "bf16" or (run.model.dtype == "auto" and gpu)
    trained = trained_names(run.model, tuple(run.train.trainable))
    elements = {name: count for name, count in ((p.name, p.elements) for p in whole_parameters(run.model))}
    return sum(elements.values()) * (2 if bf16 else 4) + sum(elements[name] for name in trained) * 4 * (3 if bf16 else 2)


def needed_bytes(runs: Sequence[Run], gpu: bool) -> int:
    """For the checkpoints that all stages keep: the newest ones, the best, and the one being written."""
    return sum(checkpoint_bytes(run, gpu) * (run.run.keep_last + 2) for run in runs)


def free_bytes(folder: Path) -> int:
    """Of the folder's file system, or of its nearest parent's that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
