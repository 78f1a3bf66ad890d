"""Stand-ins for Slurm's commands and for the ranks, so that a batch script runs whole in a second.

Each command writes down how it was called. srun starts the task as the tasks of one node would be; the "python" of the cluster is
torchrun, or a rank that does what the test says: `leave WORD` ends at once, `wait WORD` when it is asked to, `save WORD` half a second
later, and `die` without a word.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

COMMANDS = {
    "srun": 'while [[ $1 != bash ]]; do shift; done; echo $$ > "$FAKES/task"\n'
            'SLURM_PROCID=0 SLURM_LOCALID=0 SLURMD_NODENAME=n1 exec "$@"',
    # Where processes are tracked by cgroups Slurm signals the task alone, elsewhere also what it has started.
    "scancel": 'kill -TERM $(cat "$FAKES/task" ${SIGNAL_ALL:+"$FAKES/agent" "$FAKES/pid"} 2> /dev/null)',
    "scontrol": 'exit "${SCONTROL_STATUS:-0}"',
    "squeue": 'echo "${JOB_STATE:-RUNNING}"',
    "sbatch": 'echo 4321; exit "${SBATCH_STATUS:-0}"',
}
# Python, for a shell cannot catch a signal that was ignored when it began.
RANK = """\
import json, os, signal, subprocess, sys, time
from pathlib import Path

fakes, words = Path(os.environ["FAKES"]), sys.argv[1:]
if "torch.distributed.run" in words:        # the ranks are its children
    (fakes / "agent").write_text(str(os.getpid()))
    (fakes / "agent.json").write_text(json.dumps(words))
    os._exit(subprocess.call([sys.argv[0], *words[words.index("nvlm_train") - 1:]]) and 1)
(fakes / "rank.json").write_text(json.dumps([words, dict(os.environ)]))
run_dir = Path(next(word for word in words if word.startswith("run.dir=")).removeprefix("run.dir="))
does, _, word = os.environ["RANK_DOES"].partition(" ")

def leave(*_):
    (run_dir / "next").write_text(word + chr(10))
    os._exit(1)

if does == "leave":
    leave()
if does in ("wait", "save"):
    signal.signal(signal.SIGTERM, leave if does == "wait" else lambda *_: (time.sleep(0.5), leave()))
    (fakes / "pid").write_text(str(os.getpid()))
    time.sleep(30)
os._exit(137)
"""


@dataclass
class Done:
    code: int
    told: str
    calls: list[str]        # "scontrol requeue 77"
    words: list[str]        # the rank's command line
    agent: list[str]        # torchrun's; [] without
    environment: dict[str, str]

    def called(self, command: str) -> list[str]:
        return [call for call in self.calls if call.startswith(command + " ")]


class FakeSlurm:
    """Writes the commands into `folder` and runs batch scripts among them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name, does in COMMANDS.items():
            self._executable(name, f'call="{name} $*"; echo "${{call//$\'\\n\'/ }}" >> "$FAKES/calls"\n{does}\n')
        self._executable("rank", RANK, f"{sys.executable} -SE")
        self.python = folder / "rank"

    def _executable(self, name: str, text: str, program: str = "/usr/bin/env bash") -> None:
        path = self.folder / name
        path.write_text(f"#!{program}\n{text}", encoding="utf-8")
        path.chmod(0o755)

    def answer(self, name: str, output: str, error: str = "", status: int = 0) -> None:
        """From now on this command says this."""
        says = f"echo {shlex.quote(output)}; echo {shlex.quote(error)} >&2; exit {status}"
        self._executable(name, f'echo "{name} $*" >> "$FAKES/calls"\n{says}\n')

    def calls(self) -> list[str]:
        return self._lines("calls")

    def environment(self, **more: str) -> dict[str, str]:
        base = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RANK", "NVLM"))}
        return {**base, "PATH": f"{self.folder}:{os.environ['PATH']}", "FAKES": str(self.folder), "SLURM_JOB_ID": "77",
                "SLURM_NNODES": "2", "SLURM_NTASKS": "16", "SLURM_JOB_NODELIST": "n[1-2]", **more}

    def run(self, script: str, signals: tuple[signal.Signals, ...] = (), **environment: str) -> Done:
        """The batch script from start to end; `signals`, at most two, are sent to its shell, the first once the rank waits, the
        second once the first was passed on."""
        for name in ("calls", "rank.json", "agent.json", "task", "agent", "pid"):
            (self.folder / name).unlink(missing_ok=True)
        path, log = self.folder / "job.sbatch", self.folder / "log"
        path.write_text(script, encoding="utf-8")
        with log.open("wb") as out:
            job = subprocess.Popen(["bash", path], stdout=out, stderr=out, env=self.environment(**environment),
                                   start_new_session=True)
            try:
                for number, heard in zip(signals, ("pid", "calls"), strict=False):
                    self._wait_for(heard)
                    job.send_signal(number)
                code = job.wait(timeout=30)
            finally:
                left = self._end_group(job.pid)
        assert not left, f"processes outlived their job: {left}"
        rank, agent = self.folder / "rank.json", self.folder / "agent.json"
        words, found = json.loads(rank.read_bytes()) if rank.exists() else ([], {})
        return Done(code, log.read_text(encoding="utf-8"), self._lines("calls"), words,
                    json.loads(agent.read_bytes()) if agent.exists() else [], found)

    def _wait_for(self, what: str) -> None:
        deadline = time.monotonic() + 20
        while not [line for line in self._lines(what) if not line.startswith(("srun", "squeue"))]:
            assert time.monotonic() < deadline, f"no {what} after 20 seconds"
            time.sleep(0.02)

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    @staticmethod
    def _end_group(group: int) -> list[list[str]]:
        """Command lines of what was left of the job half a second after its end; whatever it was is gone now."""
        for _ in range(25):
            left = [process for process in psutil.process_iter() if _group_of(process) == group]
            if not left:
                return []
            time.sleep(0.02)
        lines = [process.cmdline() for process in left]
        os.killpg(group, signal.SIGKILL)
        return lines


def _group_of(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid) if process.status() != psutil.STATUS_ZOMBIE else None
    except (ProcessLookupError, psutil.NoSuchProcess):
        return None
