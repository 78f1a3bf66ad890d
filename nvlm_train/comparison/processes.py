"""Starting a module in processes of its own: what it says is kept, and shown where it is telling."""

import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console

from nvlm_train.errors import NvlmError

LAST_LINES = 30     # of a failed module's output
_TELLING = re.compile(r"\d\d:\d\d:\d\d |pretrain: |sft: |nvlm")
_OF_A_JOB = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class ProcessFailed(NvlmError):
    """A started module ended with an error."""


def run_module(words: Sequence[str], processes: int, log: Path, console: Console) -> None:
    """Run `python -m WORDS`, under torchrun if `processes` is more than 1, and wait for it.

    Telling lines are shown, everything is appended to `log`. Raises ProcessFailed with the end of its output. When this process is
    told to stop (SIGTERM, or SIGINT, which a terminal sends to both), so is the module, and it is waited for while it saves.
    """
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    command = [sys.executable, "-m", *torchrun, *words]
    environment = {name: value for name, value in os.environ.items() if name not in _OF_A_JOB}
    if processes > 1:
        environment.setdefault("OMP_NUM_THREADS", "1")      # more would fight over the same cores
    environment["PYTHONWARNINGS"] = "ignore"
    log.parent.mkdir(parents=True, exist_ok=True)
    last: deque[str] = deque(maxlen=LAST_LINES)
    with log.open("a", encoding="utf-8") as kept, subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process, \
            _stopping_with_us(process, kept):
        for line in process.stdout:
            kept.write(line)
            last.append(line)
            if _TELLING.match(line):
                console.print("  " + line.rstrip(), markup=False, soft_wrap=True)
    if process.returncode:
        raise ProcessFailed(f"{words[0]} ended with code {process.returncode}; all of its output is in {log}. The end of it:\n"
                            + "".join(last).rstrip())


@contextmanager
def _stopping_with_us(process: subprocess.Popen, kept: TextIO) -> Iterator[None]:
    """Passes SIGTERM on as it stops us. Whatever stops us, the process is left to end by itself, its last words kept."""
    def stop(number, frame) -> None:
        process.terminate()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        kept.writelines(process.stdout)
        process.wait()
        raise
    except Exception:
        process.terminate()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
