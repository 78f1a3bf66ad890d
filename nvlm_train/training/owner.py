"""Who trains in a run directory: `lock.owner`, a line that changes every few seconds while its process lives.

It stands beside the operating system's lock, which is not enough on every network file system: some have no locks, some keep them to
one node. A line that no longer changes is stale; times of different hosts are never compared.
"""

import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from nvlm_train.errors import TrainingError
from nvlm_train.training.logs import write_atomically

OWNER = "lock.owner"
BEAT_S = 5.0
WATCHED_S = 3 * BEAT_S      # a live owner changes its line two or three times meanwhile

log = logging.getLogger(__name__)


class InUse(TrainingError):
    """Another process trains in the run directory."""


class Owner:
    """This process's line in the run directory, kept fresh by a thread until `release`.

    lost: told when another process has put its own line there, which it may only after this one was silent for WATCHED_S.
    """

    def __init__(self, path: Path, lost: Callable[[str], None] | None = None) -> None:
        self._path, self._lost = path / OWNER, lost or _end_process
        self._token, self._count = uuid.uuid4().hex[:12], 0
        self._head = f"process {os.getpid()} on {socket.gethostname()}{_job()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="owner", daemon=True)

    def take(self, locked: bool) -> None:
        """Put our line there. locked: the operating system's lock is ours, so that no other process of this host trains here.

        Waits WATCHED_S where an earlier line may be a living process's. Raises InUse if it is.
        """
        earlier = _read(self._path)
        if earlier and not (locked and f" on {socket.gethostname()}" in earlier) and not _of_an_earlier_start(earlier):
            log.warning("%s says %s: watching for %.0f s whether it still trains", self._path, described(earlier), WATCHED_S)
            if _changes(self._path, earlier):
                raise InUse(f"{self._path.parent} is in use by {described(_read(self._path) or earlier)}: wait for it, stop it, or choose "
                            "another run.dir")
        self._write()
        if not locked:
            time.sleep(BEAT_S)      # another job may have found the same stale line at the same moment: the last writer stays
            if not self._is_ours():
                raise InUse(f"{self._path.parent} was taken at the same moment by {described(_read(self._path) or 'another process')}")
        self._thread.start()

    def release(self) -> None:
        """Take our line away. Idempotent."""
        if not self._closing.is_set():
            self._closing.set()
            if self._thread.is_alive():
                self._thread.join(BEAT_S)
            if self._is_ours():
                self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._closing.wait(BEAT_S):
            try:
                if not self._is_ours():
                    self._lost(f"{self._path.parent} now belongs to {described(_read(self._path) or 'nobody')}, after this process had been "
                               "silent: it ends, so that two do not write there")
                    return
                self._write()
            except OSError as error:
                log.warning("%s cannot be kept fresh (%s)", self._path, error)

    def _write(self) -> None:
        self._count += 1
        write_atomically(self._path, f"{self._head}; {self._token} {self._count}\n".encode())

    def _is_ours(self) -> bool:
        """A file that is gone counts as ours: somebody cleaned up, and nobody else is there."""
        found = _read(self._path)
        return found is None or self._token in found


def described(line: str) -> str:
    """The part of a line that is for people: `process 7 on node-a, job 12.0, since 2026-01-01 10:00:00`."""
    return line.partition(";")[0].strip()


def _job() -> str:
    return f", job {os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_RESTART_COUNT', '0')}" if "SLURM_JOB_ID" in os.environ else ""


def _of_an_earlier_start(line: str) -> bool:
    """Whether Slurm ended the line's process before it started this one: the same job, requeued since."""
    job, _, start = line.partition(", job ")[2].partition(",")[0].partition(".")
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return bool(job) and job == os.environ.get("SLURM_JOB_ID") and start.isdecimal() and count.isdecimal() and int(start) < int(count)


def _changes(path: Path, line: str) -> bool:
    until = time.monotonic() + WATCHED_S
    while time.monotonic() < until:
        time.sleep(min(0.5, BEAT_S / 5))
        if _read(path) not in (line, None):
            return True
    return False


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def _end_process(why: str) -> None:
    os.write(sys.stderr.fileno(), f"nvlm: {why}\n".encode())
    os._exit(1)
