"""A run given to the cluster by the real `nvlm submit`, and what a test wants to know of it."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from slurm_cluster import SlurmCluster, until

from nvlm_train.training.status import read_next, read_status
from tests.engine.launching import ROOT
from tests.faults.jobs import rows

# Long enough to be disturbed, and the same in every run that is compared.
STEPS = 12
SETTINGS = ("recipe=nvlm_d_tiny", f"train.steps={STEPS}", "train.warmup_steps=2", "train.global_batch=8", "run.save_every=3",
            "run.eval_batches=1", "run.examples=0", "run.timeout_s=120")
GOES_ON = re.compile(r"(pretrain|sft): goes on after step (\d+) of")


@dataclass
class Submitted:
    """One submission, in a folder of its own; `story` is what happened when, for people."""

    cluster: SlurmCluster
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    story: list[str] = field(default_factory=list)
    number: str = ""

    def __post_init__(self) -> None:
        self._began = time.monotonic()

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def tell(self, text: str) -> None:
        line = f"{time.monotonic() - self._began:7.1f} s  {text}"
        self.story.append(line)
        print(line)

    def submit(self, *words: str, nodes: int = 2, ranks_per_node: int = 1, timeout: float = 120) -> None:
        """`nvlm submit` of SETTINGS and `words`. Raises AssertionError with what it said if it fails."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "nvlm_train", "submit", *SETTINGS, f"run.dir={self.run_dir}", "cluster=local_slurm",
                   f"nodes={nodes}", f"cluster.processes_per_node={ranks_per_node}", f"cluster.python={sys.executable}", *words]
        environment = {**self.cluster.env, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **self.environment}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, done.stderr
        self.number = re.search(r"submitted: job (\d+)", done.stdout)[1]
        self.tell(f"nvlm submit: job {self.number}, {nodes} nodes, {ranks_per_node} ranks each")

    def steps(self, stage: str) -> int:
        """Finished steps of a stage, by metrics.jsonl."""
        return max((row["step"] for row in rows(self.run_dir) if row["stage"] == stage), default=0)

    def wait_for_step(self, stage: str, step: int, timeout: float = 300) -> None:
        self._wait(lambda: self.steps(stage) >= step, timeout, f"step {step} of {stage}")

    def wait_for_state(self, *states: str, timeout: float = 300) -> None:
        self._wait(lambda: self.cluster.job(self.number)["JobState"] in states, timeout, " or ".join(states))

    def wait_for_requeue(self, restarts: int = 1, timeout: float = 120) -> float:
        """Until Slurm holds the requeued job; lifts the hold, and returns the seconds of it that were saved."""
        self._wait(lambda: int(self.cluster.job(self.number)["Restarts"]) >= restarts, timeout, f"restart {restarts}")
        saved = self.cluster.lift_hold(self.number)
        self.tell(f"job {self.number} is requeued (restart {restarts}); Slurm's hold of {saved:.0f} s lifted")
        return saved

    def wait_for_end(self, timeout: float = 400) -> str:
        self.wait_for_state("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", timeout=timeout)
        return self.cluster.job(self.number)["JobState"]

    def ask_to_stop(self) -> None:
        """As Slurm does shortly before the time limit: SIGUSR1 to the batch shell alone."""
        self.cluster.ask("scancel", "--batch", "--signal=USR1", self.number)
        stage, step = [row[:2] for row in self.curve()][-1]
        self.tell(f"SIGUSR1 to job {self.number}'s batch shell, after step {step} of {stage}")

    def set_time_limit(self, minutes: int) -> None:
        """Counted from the job's start."""
        self.cluster.ask("scontrol", "update", f"JobId={self.number}", f"TimeLimit={minutes}")
        self.tell(f"time limit of job {self.number}: {minutes} minutes")

    def ranks(self) -> list[int]:
        """Processes of `nvlm train` that torchrun or srun started, in the order of their ranks."""
        found = {}
        for pid in self.cluster.processes():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if words[1:4] in (["-m", "nvlm_train", "train"], ["-u", "-m", "nvlm_train"]):
                variables = dict(line.partition("=")[::2] for line in
                                 Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0"))
                found[int(variables["RANK"])] = pid
        return [found[rank] for rank in sorted(found)]

    def word(self) -> str | None:
        return read_next(self.run_dir)

    def resumed_from(self) -> list[tuple[str, int]]:
        """(stage, step) of every time that a start of this run went on from a checkpoint, by the main rank's logs."""
        return [(stage, int(step)) for stage, step in GOES_ON.findall(self.printed())]

    def printed(self) -> str:
        """What the batch scripts of this run and its ranks printed, oldest job first."""
        return "\n".join(path.read_text(errors="replace") for path in sorted((self.run_dir / "slurm").glob("*.out")))

    def curve(self, *fields: str) -> list[tuple]:
        return [(row["stage"], row["step"], *(row[name] for name in fields or ("loss", "grad_norm", "lr", "tokens")))
                for row in rows(self.run_dir)]

    def samples(self) -> list[tuple]:
        return [(row["stage"], row["step"], row["first_slot"], row["ids"]) for row in rows(self.run_dir, "samples.jsonl")]

    def _wait(self, done: Callable[[], bool], timeout: float, what: str) -> None:
        def all_about_it() -> str:
            return (f"{what}: job {self.cluster.job(self.number)}, status {read_status(self.run_dir)}\n"
                    f"{chr(10).join(self.story)}\n{self.printed()[-6000:]}")

        until(done, timeout, all_about_it)
