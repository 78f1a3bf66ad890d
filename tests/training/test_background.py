"""A tracker may stall, fail or fall behind: no step waits for it, and it is said once."""

import logging
import threading
import time

import pytest
from training_fakes import Collector, FakeEngine, make_batches, make_run

from nvlm_train.training.background import Background, Guarded
from nvlm_train.training.loop import train
from nvlm_train.training.metrics import Recorder, Sink


def train_with(sink, steps=20):
    run, engine = make_run(steps=steps), FakeEngine()
    return train(run, engine, make_batches(run), [Recorder(run, engine, [sink], [], lambda step: True, ["here"], None)])


@pytest.fixture
def stuck():
    """Blocks whoever waits for it, until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_everything_arrives_in_order_and_the_sink_is_made_and_closed_in_its_thread():
    threads = []

    class Noting(Collector):
        def close(self):
            super().close()
            threads.append(threading.current_thread())

    collector = Noting()
    sink = Background("tracker", lambda: threads.append(threading.current_thread()) or collector)
    sink.evaluation({"step": 0})
    sink.examples("sft", 3, [{"key": "a"}])
    sink.saved("sft", 3, 0.5)
    assert train_with(sink) == 20
    assert [record.row["step"] for record in collector.records] == list(range(1, 21))
    assert (collector.evaluations, collector.answered, collector.saves) == ([{"step": 0}], [("sft", 3, [{"key": "a"}])], [("sft", 3)])
    assert collector.closed and all(record.slots == () for record in collector.records)
    assert len(set(threads)) == 1 and threads[0] is not threading.current_thread()


@pytest.mark.parametrize("where", ["making", "step", "close"])
def test_a_tracker_that_stalls_holds_up_no_step_and_the_end_only_so_long(stuck, caplog, where):
    class Stalling(Sink):
        def step(self, record):
            if where == "step":
                stuck.wait()

        def close(self):
            if where == "close":
                stuck.wait()

    def make():
        if where == "making":
            stuck.wait()
        return Stalling()

    sink = Background("tracker", make, close_s=0.5)
    began = time.monotonic()
    assert train_with(sink) == 20
    assert time.monotonic() - began < 30      # half a second; for ever without
    assert said(caplog) == ["tracker has not taken in everything after 0 s and is left behind; training goes on"]


def test_rows_that_find_no_room_are_counted(stuck, caplog):
    sink = Background("tracker", lambda: stuck.wait() and Sink(), close_s=0.2, waiting=5)
    assert train_with(sink) == 20
    assert said(caplog)[-1] == "tracker was too slow: 15 rows are not in it (metrics.jsonl has all)"


@pytest.mark.parametrize("at", [1, 3])
def test_a_tracker_that_fails_is_told_once_and_spoken_to_no_more(caplog, at):
    class Failing(Collector):
        def step(self, record):
            super().step(record)
            if len(self.records) == at:
                raise RuntimeError("quota\nand more")

    failing = Failing()
    assert train_with(Background("tracker", lambda: failing)) == 20
    assert len(failing.records) == at and not failing.closed
    assert said(caplog) == ["tracker is off for the rest of this stage (RuntimeError: quota); training goes on"]


def test_a_view_that_fails_is_told_once_and_spoken_to_no_more(caplog):
    class Failing(Collector):
        def step(self, record):
            super().step(record)
            raise OSError(5, "Input/output error")

    failing = Failing()
    guarded = Guarded("the view", failing)
    assert train_with(guarded) == 20
    guarded.evaluation({})
    guarded.examples("sft", 1, [])
    guarded.saved("sft", 1, 0.0)
    assert len(failing.records) == 1 and not (failing.closed or failing.evaluations or failing.answered or failing.saves)
    assert said(caplog) == ["the view is off for the rest of this stage (OSError: [Errno 5] Input/output error); training goes on"]
