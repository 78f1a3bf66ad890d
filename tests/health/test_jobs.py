"""Real jobs of two processes, of which one goes wrong: the others name it, the job ends by itself, and no process is left."""

import json
import os
import signal
import threading
import time
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from nvlm_train.health.watch import HUNG
from tests.engine.launching import Launched, launch

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).with_name("faulty_ranks.py")
TINY = ["recipe=nvlm_d_tiny", "stage=pretrain", "train.steps=2000", "train.warmup_steps=1", "train.global_batch=16", "run.eval_batches=1",
        "run.examples=0"]


def job(kind: str, folder: Path, *settings: str) -> Launched:
    done = launch(SCRIPT, 2, kind, "train", *TINY, *settings, f"run.dir={folder / 'run'}", folder=folder, timeout=300)
    assert not done.survivors, done.output[-3000:]
    return done


def said(done: Launched) -> list[str]:
    return [line for line in done.output.splitlines() if "rank " in line]


def status(folder: Path) -> dict:
    return json.loads((folder / "run" / "status.json").read_text())


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "told"), [("version", "megatron-core: differs: "), ("elsewhere", "is not shared: rank 1 on ")])
def test_ranks_that_do_not_fit_together_are_refused_before_anything_starts(kind, told, tmp_path):
    done = job(kind, tmp_path)
    assert done.returncode != 0 and told in done.output
    assert done.output.count(told) == 1 and "Traceback" not in done.output.split("torch.distributed.elastic")[0].split("Traceback (most")[0]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert (status(tmp_path)["state"], status(tmp_path)["exit_code"]) == ("failed", 2)
    assert (tmp_path / "run" / "next").read_text() == "stop\n"


@pytest.mark.full
@pytest.mark.slow
def test_an_exception_is_told_with_rank_host_and_step(tmp_path):
    done = job("raises", tmp_path)
    root = f"rank 1 ({os.uname().nodename}) failed after step 2 of pretrain, in train_step: ValueError: boom"
    assert done.returncode != 0
    assert f"nvlm: {root}. This rank ends with it" in done.output       # rank 0, instead of gloo's noise
    assert "Connection closed by peer" not in done.output
    assert status(tmp_path)["error"].startswith(root)


@pytest.mark.full
@pytest.mark.slow
def test_a_rank_that_leaves_early_with_code_0_is_blamed(tmp_path):
    done = job("leaves", tmp_path)
    assert "failed after step 2 of pretrain, in train_step: it left early with code 0" in status(tmp_path)["error"]
    assert done.returncode != 0


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dies", "killed"])     # torchrun goes on after status 0, and sends the others SIGTERM after SIGKILL
def test_a_process_that_is_gone_without_a_word_is_named(kind, tmp_path):
    job(kind, tmp_path)
    assert "rank 1 (" in status(tmp_path)["error"] and "is gone without a word" in status(tmp_path)["error"]


@pytest.mark.full
@pytest.mark.slow
def test_a_rank_that_hangs_outside_the_collective_is_named_with_its_line(tmp_path):
    done = job("sleeps", tmp_path, "run.hang_s=6")
    error = status(tmp_path)["error"]
    assert done.returncode != 0 and status(tmp_path)["exit_code"] == HUNG
    assert "rank 1 (" in error and "did not come to the collective in which the others wait: after step 2 of pretrain, in train_step" in error
    stacks = sorted((tmp_path / "run" / "stacks").glob("*/rank-*.txt"))
    assert [path.name for path in stacks] == ["rank-00000.txt", "rank-00001.txt"]
    assert "time.sleep(600)" in stacks[1].read_text() and "all_reduce" in stacks[0].read_text()


@pytest.mark.full
@pytest.mark.slow
def test_a_rank_whose_interpreter_is_stuck_is_named_and_still_shows_its_stack(tmp_path):
    done = job("locks", tmp_path, "run.hang_s=6")
    assert "Timeout (" in done.output and "faulty_ranks.py" in done.output.split("Timeout (")[1]
    assert "rank 1 (" in status(tmp_path)["error"] and "has not been heard of" in status(tmp_path)["error"]


@pytest.mark.full
@pytest.mark.slow
def test_a_stopped_rank_is_named_within_seconds_and_ended(tmp_path):
    """SIGSTOP: it takes no SIGTERM either, and torchrun alone would wait for 30 s before it kills it."""
    stopped = []

    def stop() -> None:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
            time.sleep(0.1)
        process = next(process for process in psutil.process_iter() if _is_rank_1(process, tmp_path))
        os.kill(process.pid, signal.SIGSTOP)
        stopped.extend([time.time(), process.pid])

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    hang_s = 6
    done = job("none", tmp_path, f"run.hang_s={hang_s}")
    ended, named = time.time(), datetime.fromisoformat(status(tmp_path)["time"]).timestamp()
    print(f"run.hang_s={hang_s}: named {named - stopped[0]:.0f} s after SIGSTOP, all processes gone after {ended - stopped[0]:.1f} s")
    assert f"process {stopped[1]}, has not been heard of for" in status(tmp_path)["error"], done.output[-3000:]
    assert status(tmp_path)["exit_code"] == HUNG
    assert named - stopped[0] < hang_s + 10     # two ticks of 0.75 s, 3.5 s for the others to answer; the rest is a busy machine's


def _is_rank_1(process: psutil.Process, folder: Path) -> bool:
    try:
        return str(folder / "run") in " ".join(process.cmdline()) and process.environ().get("RANK") == "1"
    except psutil.Error:
        return False
