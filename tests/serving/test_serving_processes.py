"""`nvlm serve` and `nvlm chat` on a real model, on one process and on two."""

import signal
import subprocess
import sys
import time

import pytest
from serving_jobs import ENVIRONMENT, serving, stop
from serving_toys import png, shown, user

from benchmarks.serving import measure
from tests.faults.jobs import start

pytestmark = [pytest.mark.full, pytest.mark.slow, pytest.mark.distributed]

QUESTION = user([shown(png(96, 64)), {"type": "text", "text": "What is it?"}], max_tokens=12)
LONG = user("Write on and on.", max_tokens=60, temperature=2.0, seed=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny model that was trained for two steps, with weights large enough that its answers differ."""
    run_dir = tmp_path_factory.mktemp("serving") / "run"
    start(run_dir, "recipe=nvlm_d_tiny", "stage=sft", "train.steps=2", "train.warmup_steps=1", "model.init_std=0.2",
          "run.device=cpu").wait()
    return run_dir


@pytest.fixture(scope="module")
def alone(checkpoint):
    """What one process answers, and what becomes of its last answer when it is told to stop."""
    with serving(checkpoint, "serve.drain_s=20") as job:
        answers = [job.ask(QUESTION), job.ask(LONG)]
        begun = job.begin(LONG)
        code = stop(job)
        return answers, begun.read(), code, job.log.read_text()


def test_one_process_answers_and_finishes_what_it_began(alone):
    [(status, answer), (_, long)], rest, code, log = alone
    assert status == 200 and answer["nvlm"]["tiles"] == 7
    assert long["usage"]["completion_tokens"] > 10, "too short to be in the middle of anything"
    assert rest.endswith(b"data: [DONE]\n\n") and code == 0
    assert "stopping: 1 requests have 20 s to finish" in log and "Traceback" not in log


def test_two_processes_answer_alike_and_rest_when_nobody_asks(alone, checkpoint):
    with serving(checkpoint, "layout.tensor=2", ranks=2) as job:
        answers = [job.ask(QUESTION), job.ask(LONG)]
        for (_, ours), (_, theirs) in zip(answers, alone[0], strict=True):
            assert ours["choices"] == theirs["choices"] and ours["usage"] == theirs["usage"]
        before = job.busy_s()
        time.sleep(4)
        assert job.busy_s() - before < 1.0, "seconds of two processors in four seconds of rest"
        job.processes()[0].terminate()      # torchrun itself ends with 1 when it is told to stop, whatever its processes say
        assert job.process.wait(40) == 0, job.log.read_text()[-3000:]


def test_a_server_under_torchrun_finishes_what_it_began(checkpoint):
    """The launcher passes the signal on to all processes; the second one must wait for the first."""
    with serving(checkpoint, "layout.tensor=2", ranks=2) as job:
        begun = job.begin(LONG)
        stop(job)
        assert begun.read().endswith(b"data: [DONE]\n\n")
        assert "stopping: 1 requests" in job.log.read_text()


def test_a_lost_process_ends_the_server_and_nobody_waits(checkpoint):
    with serving(checkpoint, "layout.tensor=2", ranks=2) as job:
        assert job.ask(QUESTION)[0] == 200
        job.processes()[-1].send_signal(signal.SIGKILL)
        assert job.process.wait(60) != 0


def test_sixty_four_clients_at_once_leave_nothing_behind(checkpoint):
    """The benchmark of docs/serving.md, shorter."""
    found = measure(str(checkpoint), [], clients=64, seconds=20, warm=15)
    assert found["errors"] == 0 and found["left_in_flight"] == 0, found
    assert found["seen"]["answered"] > 64 and found["seen"]["left"] > 0, found
    before, after = found["before"], found["after"]
    assert after["files"] <= before["files"] + 2 and after["threads"] <= before["threads"], found
    assert after["rss_mib"] < 1.1 * before["rss_mib"], found


def test_chat_answers_lines_from_a_pipe(checkpoint, tmp_path):
    (tmp_path / "red.png").write_bytes(png(96, 64))
    lines = f"/image {tmp_path / 'red.png'}\nWhat is it?\n/clear\nAnd now?\n"
    done = subprocess.run([sys.executable, "-m", "nvlm_train", "chat", f"checkpoint={checkpoint}", "chat.max_new_tokens=6"], input=lines,
                          capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert "96x64 pixels" in done.stderr
    assert done.stdout.endswith("\n") and len(done.stdout.split("\n")) >= 3
