"""Virtual environments for the peers, and one contender's run as a process of its own: nothing hangs, nothing is left behind."""

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What peers work with besides themselves: the releases that ours runs with, so that loaders are compared and not libraries.
SHARED = ("torch", "numpy", "pillow", "simplejpeg", "tokenizers", "psutil")
INSTALL_LIMIT_S = 1800.0


class ContenderFailed(Exception):
    """A contender could not be installed, or did not run to its end. Its text is the reason, in one line."""


def _last_line(text: str, start: str = "") -> str:
    """The last line that begins with `start`, else the last that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith(start)), lines[-1] if lines else "it said nothing")


def finish(command: Sequence[str | Path], environment: Mapping[str, str], limit_s: float) -> tuple[int, str, str]:
    """Run a command from the root of the repository: (exit status, stdout, stderr). Ends it with all its children after `limit_s`
    seconds, which raises ContenderFailed."""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, start_new_session=True) as process:
        try:
            out, error = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise ContenderFailed(f"ended after {limit_s:.0f} s without a result") from None
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)   # whatever is still there: the process itself, or workers that outlived it
            except ProcessLookupError:
                pass
    return process.returncode, out, error


def interpreter(work: Path, requirement: str) -> Path:
    """The Python of a virtual environment under `work` that holds a peer, made if it is not there yet. Raises ContenderFailed."""
    wanted = [f"{name}=={version(name).partition('+')[0]}" for name in SHARED] + [requirement]
    name = hashlib.sha256("\n".join([platform.python_version(), *wanted]).encode()).hexdigest()[:12]
    folder = work / "environments" / f"{requirement.partition('==')[0]}-{name}"
    python, complete = folder / "bin" / "python", folder / "complete.txt"
    if complete.is_file():
        return python
    print(f"installing {requirement} into {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    for what, command in (("venv", [sys.executable, "-m", "venv", folder]), ("pip", [python, "-m", "pip", "install", "--quiet", *wanted])):
        status, _, error = finish(command, os.environ, INSTALL_LIMIT_S)
        if status:
            shutil.rmtree(folder, ignore_errors=True)
            raise ContenderFailed(f"not installed, {what} says: {_last_line(error, 'ERROR')}")
    complete.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    return python


def measure(python: Path | str, module: str, arguments: Sequence[str], settings: Mapping[str, str], limit_s: float) -> dict:
    """The line that one run of benchmarks.peers.`module` ends with. settings: environment variables. Raises ContenderFailed."""
    environment = {**os.environ, **settings, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    status, out, error = finish([python, "-m", f"benchmarks.peers.{module}", *arguments], environment, limit_s)
    if status:
        raise ContenderFailed(f"failed: {_last_line(error)}")
    try:
        return json.loads(_last_line(out))
    except json.JSONDecodeError:
        raise ContenderFailed(f"told no result, but: {_last_line(out)}") from None
