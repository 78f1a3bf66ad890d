"""Running a script on several gloo processes, with a hard time limit, and making sure that none of them is left."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAKE_GPU = ROOT / "tests" / "fake_gpu" / "run.py"
MARK = "NVLM_FAKE_GPU"      # in the environment of a process that has a fake GPU


@dataclass(frozen=True)
class Launched:
    returncode: int
    output: str
    survivors: list[int]


def launch(script: Path, ranks: int, *arguments: object, folder: Path, timeout: int = 120, fake_gpu: bool = False) -> Launched:
    """Run a script under torchrun; on fake GPUs if asked for, or where this process has one. Its output goes to a file: a pipe would be
    held open by whatever survives."""
    mark = f"NVLM_TEST_LAUNCH={uuid.uuid4().hex}"
    name, value = mark.split("=")
    log = folder / f"{script.stem}-{value[:6]}.log"
    wrapper = [str(FAKE_GPU)] if fake_gpu or MARK in os.environ else []
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-addr", "127.0.0.1",
               "--master-port", str(free_port()), *wrapper, str(script), *map(str, arguments)]
    environment = {**os.environ, name: value, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    survivors = survivors_of(mark)
    for pid in survivors:
        os.kill(pid, signal.SIGKILL)
    return Launched(process.returncode, log.read_text(errors="replace"), survivors)


def measured(script: Path, folder: Path) -> dict:
    """What a script of checks measured on one process and wrote as JSON to its first argument."""
    done = launch(script, 1, folder / "facts.json", folder=folder, timeout=240)
    assert done.returncode == 0, done.output[-4000:]
    return json.loads((folder / "facts.json").read_text())


def free_port() -> int:
    """Below those that the system hands out by itself, of which the ranks of other tests take hundreds before this one is used."""
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def survivors_of(mark: str, patience: float = 3.0) -> list[int]:
    """Living processes that carry the mark in their environment, after a moment for the dying to go."""
    until = time.monotonic() + patience
    while (alive := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _carries(pid, mark)]) \
            and time.monotonic() < until:
        time.sleep(0.1)
    return alive


def _carries(pid: int, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:     # gone, or a zombie
        return False
