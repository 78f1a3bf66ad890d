"""`nvlm serve` as people start it: real processes, a tiny model, and none of them left behind."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.engine.launching import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


@dataclass
class Job:
    """A server that runs. url: where; log: what it said."""

    process: subprocess.Popen
    log: Path
    port: int

    def ask(self, body: dict, timeout: float = 60) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def begin(self, body: dict) -> http.client.HTTPResponse:
        """A streamed answer, of which the first event has come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200 and response.readline().startswith(b"data: ")
        return response

    def processes(self) -> list[psutil.Process]:
        """Those that hold the model."""
        main = psutil.Process(self.process.pid)
        return main.children() or [main]

    def busy_s(self) -> float:
        """Processor seconds of all of them so far."""
        return sum(sum(each.cpu_times()[:2]) for each in self.processes())


@contextmanager
def serving(checkpoint: Path, *settings: str, ranks: int = 1, limit_s: float = 180) -> Iterator[Job]:
    """A server on a free port, once it answers; at the end no process of it is left."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "nvlm_train", "serve", f"checkpoint={checkpoint}", "serve.port=0", *settings]
    log = checkpoint.parent / f"serve-{time.monotonic_ns()}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, env=ENVIRONMENT)
    try:
        yield Job(process, log, _port(process, log, limit_s))
    finally:
        left = [each for each in psutil.process_iter(["pid"]) if _group(each.pid) == process.pid]
        for each in left:
            each.kill()
        process.wait(20)


def _port(process: subprocess.Popen, log: Path, limit_s: float) -> int:
    until = time.monotonic() + limit_s
    while not (found := re.search(r"is served at http://127\.0\.0\.1:(\d+)", log.read_text())):
        assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
        time.sleep(0.1)
    return int(found[1])


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def stop(job: Job, limit_s: float = 40) -> int:
    """SIGTERM as a scheduler sends it, and the exit code."""
    os.kill(job.process.pid, signal.SIGTERM)
    return job.process.wait(limit_s)
