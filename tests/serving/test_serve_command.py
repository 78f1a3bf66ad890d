"""`nvlm serve` from its first word to its last, in this process: signals, failures, and how it leaves."""

import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from serving_toys import ENCODER, LIMITS, NAME, Scripted, Served, user, wait_until

from nvlm_train.config.compose import compose
from nvlm_train.errors import CheckpointError, NvlmError
from nvlm_train.serving import command
from tests.engine.launching import free_port

MODEL = SimpleNamespace(run=SimpleNamespace(recipe=NAME), encoder=ENCODER, blind=None)


@pytest.fixture
def serve(monkeypatch):
    """serve(generator, meanwhile): the command runs here, and `meanwhile` in a thread, which gets a way to ask once it answers."""
    def run(generator, meanwhile, **limits):
        monkeypatch.setattr(command, "open_generator", lambda runs, checkpoint, slots: (MODEL, generator(), lambda orders: orders))
        settings = replace(LIMITS, port=free_port(), **limits)
        with in_thread(lambda: meanwhile(Served(settings.port, None, None, None))):
            command.serve_command(compose(["recipe=nvlm_d_tiny"]), "nowhere", settings)
    return run


@contextmanager
def in_thread(work):
    """What it raises is raised here, when it is done."""
    problems = []

    def guarded():
        try:
            work()
        except BaseException as problem:  # noqa: BLE001 (of the other thread)
            problems.append(problem)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(20)
        assert not thread.is_alive()
        if problems:
            raise problems[0]


def answers(up):
    try:
        return up.get("/health")[0] == 200
    except OSError:
        return False


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_lets_what_runs_finish(serve, caplog):
    caplog.set_level("INFO", "nvlm_train")
    generator, seen = Scripted(lambda request: "a long answer, written slowly", pause_s=0.03), []

    def meanwhile(up):
        wait_until(lambda: answers(up))
        with in_thread(lambda: seen.append(up.ask(user("?")))):
            wait_until(lambda: generator.busy)
            stop()

    serve(lambda: generator, meanwhile)
    [(status, answer, _)] = seen
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "a long answer, written slowly")
    assert "toy is served at http://127.0.0.1:" in caplog.text and "stopping: 1 requests have 25 s" in caplog.text


def test_what_does_not_finish_in_time_is_told_so(serve):
    generator, seen = Scripted(lambda request: "never"), []
    generator.gate.clear()

    def meanwhile(up):
        wait_until(lambda: answers(up))
        with in_thread(lambda: seen.append(up.ask(user("?")))):
            wait_until(lambda: generator.busy)
            stop()

    began = time.monotonic()
    serve(lambda: generator, meanwhile, drain_s=0.3)
    [(status, answer, _)] = seen
    assert (status, answer["error"]["code"]) == (503, "server_stopping")
    assert time.monotonic() - began < 10


def test_a_model_that_fails_ends_the_server_with_its_reason(serve):
    seen = []

    def fail(request):
        raise RuntimeError("out of memory")

    def meanwhile(up):
        wait_until(lambda: answers(up))
        seen.append(up.ask(user("?")))

    with pytest.raises(NvlmError, match="the server went down with it: RuntimeError: out of memory"):
        serve(lambda: Scripted(fail), meanwhile)
    assert seen[0][0] == 500


def test_a_checkpoint_that_cannot_be_opened_is_said_as_it_is(serve):
    def broken():
        raise CheckpointError("it is damaged")

    with pytest.raises(CheckpointError, match="it is damaged"):
        serve(broken, lambda up: None)


def test_a_signal_while_the_model_is_loaded_does_not_wait_for_it(serve):
    loading = threading.Event()

    def meanwhile(up):
        wait_until(lambda: signal.getsignal(signal.SIGTERM) != signal.SIG_DFL)
        stop()

    try:
        with pytest.raises(NvlmError, match="before the model was loaded"):
            serve(lambda: loading.wait(30), meanwhile)
    finally:
        loading.set()
