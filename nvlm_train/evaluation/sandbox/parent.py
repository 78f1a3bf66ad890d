"""Starts a process of its own for a program, waits for its verdict, and ends it with everything that it started.

Walls, from the outside in:
  kernel     where unprivileged namespaces are allowed: no network at all, no other processes to be seen, every folder read-only but
             an empty one in memory, all processes gone when the first one ends (see `child`)
  limits     CPU seconds, memory, file size, open files, processes
  audit      Python's own events: opening files to write, removing, renaming, sockets, processes, loading native code are refused
Without the kernel's wall, code that sets out to get around Python's events (native code that is there already, a flaw of the
interpreter) can write what this user can write and reach the network. `Outcome.walled` says which it was. It is no place for code of
somebody who means harm; for that take a virtual machine.
"""

import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--mount", "--ipc", "--fork", "--kill-child")
CHILD = Path(__file__).with_name("child.py")
PATIENCE = 10.0     # seconds of waiting for a program that sleeps, beside its CPU seconds
ANSWER = 1 << 16    # bytes of a verdict that are read


@dataclass(frozen=True)
class Limits:
    """Of one program. cpu_s: seconds of computing; memory: bytes of address space; file: bytes of a file; processes: of this user,
    and the kernel counts none of root's."""

    cpu_s: int = 3
    memory: int = 1 << 30
    file: int = 1 << 16
    open_files: int = 32
    processes: int = 64


@dataclass(frozen=True)
class Outcome:
    """passed: the program ran to its end. note: what ended it otherwise. walled: the kernel's wall stood."""

    passed: bool
    note: str
    walled: bool


@functools.cache
def kernel_walls() -> bool:
    """Whether this machine lets an ordinary user make namespaces of his own, and has the tool for it."""
    if shutil.which(UNSHARE[0]) is None:
        return False
    try:
        tried = subprocess.run([*UNSHARE, sys.executable, "-I", "-S", str(CHILD), "--try"], stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return tried.returncode == 0


def run(program: str, limits: Limits = Limits(), walls: bool | None = None) -> Outcome:
    """Run a Python program in an empty folder, without input, and say whether it came to its end.

    walls: whether to put up the kernel's wall; default: where it can be. A program passes only if its last line is reached: leaving
    early, by whatever way and with whatever status, does not pass.
    """
    walls = kernel_walls() if walls is None else walls
    token = secrets.token_hex(16)
    order = json.dumps({"program": program, "token": token, "walls": walls, **asdict(limits)}).encode("utf-8", "surrogatepass")
    reading, writing = os.pipe()
    try:
        with tempfile.TemporaryDirectory(prefix="nvlm-program-") as folder:
            command = [*(UNSHARE if walls else ()), sys.executable, "-I", "-S", str(CHILD), str(writing)]
            process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL, pass_fds=(writing,), start_new_session=True,
                                       env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"})
            os.close(writing)
            writing = -1
            ended = _wait(process, order, limits.cpu_s + PATIENCE)
        os.set_blocking(reading, False)     # whoever escaped may hold the other end
        return _verdict(_read(reading), token, ended, walls)
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def _wait(process: subprocess.Popen, order: bytes, seconds: float) -> str:
    """Hand the order over, wait, end the whole group. Returns what ended the process, in words."""
    try:
        process.communicate(order, timeout=seconds)
        code = process.returncode
        # unshare passes a signal on as 128 + its number.
        number = -code if code < 0 else code - 128
        if number in (signal.SIGXCPU, signal.SIGKILL):
            return "timed out: its CPU seconds were spent"
        return f"ended by signal {number}" if number > 0 else f"left early with status {code}"
    except subprocess.TimeoutExpired:
        return f"timed out: {seconds:g} s went by"
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, ANSWER)
    except BlockingIOError:
        return b""


def _verdict(answer: bytes, token: str, ended: str, walls: bool) -> Outcome:
    try:
        said = json.loads(answer)
    except ValueError:
        return Outcome(False, ended, walls)
    if not isinstance(said, dict) or said.get("token") != token:
        return Outcome(False, ended, walls)
    return Outcome(said.get("note") == "passed", str(said.get("note")), walls)
