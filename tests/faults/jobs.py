"""Jobs as people run them: real processes of the real command, killed without warning."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.engine.launching import ROOT


@dataclass
class Job:
    """`nvlm train` on one or several processes, in a process group of its own."""

    process: subprocess.Popen
    log: Path

    def wait(self, timeout: float = 240) -> None:
        code = self.process.wait(timeout)
        assert code == 0, self.log.read_text()[-3000:]

    def kill(self) -> None:
        """All of it at once, as a power cut would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_one_rank(self, within: float = 60) -> None:
        """One worker only: the others must notice, and the launcher must end the job by itself."""
        psutil.Process(self.process.pid).children()[-1].kill()
        assert self.process.wait(within) != 0


def start(run_dir: Path, *settings: str, ranks: int = 1) -> Job:
    """Begin `nvlm train`, on several ranks under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "nvlm_train", "train", f"run.dir={run_dir}", *settings]
    log = run_dir.with_suffix(f".{time.monotonic_ns()}.log")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    with log.open("wb") as out:
        return Job(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=environment), log)


def rows(run_dir: Path, name: str = "metrics.jsonl") -> list[dict]:
    """Complete rows only: the last line may have been cut by the kill."""
    path = run_dir / name
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def wait_for(job: Job, run_dir: Path, stage: str, step: int, timeout: float = 240) -> None:
    until = time.monotonic() + timeout
    while not any(row["stage"] == stage and row["step"] >= step for row in rows(run_dir)):
        assert job.process.poll() is None, f"ended before step {step} of {stage}:\n{job.log.read_text()[-3000:]}"
        assert time.monotonic() < until, job.log.read_text()[-3000:]
        time.sleep(0.02)


def kill_after(job: Job, run_dir: Path, stage: str, step: int) -> None:
    wait_for(job, run_dir, stage, step)
    job.kill()
