import os
import signal

import pytest
from training_fakes import Diary, FakeEngine, make_batches, make_run

from nvlm_train.errors import TrainingError
from nvlm_train.training import preemption
from nvlm_train.training.loop import train
from nvlm_train.training.preemption import Preempted
from nvlm_train.training.schedule import lr_at

NAN = float("nan")


def test_hooks_run_in_order_around_every_step_and_close_in_reverse():
    run, entries = make_run(steps=2), []
    assert train(run, FakeEngine(), make_batches(run), [Diary("a", entries), Diary("b", entries)]) == 2
    assert entries == [
        ("a", "start", 0), ("b", "start", 0), ("a", "step", 1), ("b", "step", 1), ("a", "step", 2), ("b", "step", 2),
        ("a", "end", 2), ("b", "end", 2), ("b", "close"), ("a", "close"),
    ]


def test_a_resumed_run_goes_on_with_the_right_steps_and_rates():
    run, engine, entries = make_run(steps=5, warmup_steps=2), FakeEngine(), []
    assert train(run, engine, make_batches(run, start=3), [Diary("a", entries)], start_step=3) == 5
    assert [entry[2] for entry in entries if entry[1] == "step"] == [4, 5]
    assert engine.rates == [lr_at(4, run.train), lr_at(5, run.train)]


def test_bad_steps_below_the_limit_are_survived_and_the_count_starts_over():
    run, entries = make_run(steps=6, max_bad_steps=3), []
    engine = FakeEngine(losses=[1.0, NAN, NAN, 1.0, NAN, 1.0])
    assert train(run, engine, make_batches(run), [Diary("a", entries)]) == 6
    assert sum(entry[1] == "step" for entry in entries) == 6


def test_too_many_bad_steps_in_a_row_stop_and_name_the_samples():
    run, entries = make_run(steps=9, max_bad_steps=2), []
    refused = {7: "broken_image"}
    with pytest.raises(TrainingError) as caught:
        engine = FakeEngine(losses=[1.0, 1.0, NAN, NAN, 1.0])
        train(run, engine, make_batches(run, refused=refused.get), [Diary("a", entries)])
    message = str(caught.value)
    assert "2 steps in a row" in message and "step 4 of pretrain" in message
    assert "Its samples: s6." in message, "the refused sample s7 cannot be to blame"
    assert entries[-2:] == [("a", "step", 4), ("a", "close")], "hooks see the last step, but are not told it ended well"


def test_data_that_ends_early_is_an_error_that_names_both_numbers():
    run = make_run(steps=5)
    with pytest.raises(TrainingError, match="ended after step 3 of 5"):
        train(run, FakeEngine(), make_batches(make_run(steps=3)), [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_finishes_the_step_saves_and_stops(number, capfd):
    run, entries = make_run(steps=9), []
    before = signal.getsignal(number)
    engine = FakeEngine(during=lambda step: os.kill(os.getpid(), number) if step == 3 else None)
    with pytest.raises(Preempted, match=f"{signal.Signals(number).name} after step 3 of 9") as caught:
        train(run, engine, make_batches(run), [Diary("a", entries)])
    assert caught.value.exit_code == 75
    assert entries[-3:] == [("a", "step", 3), ("a", "end", 3), ("a", "close")]
    assert signal.getsignal(number) is before
    assert "finishing this step" in capfd.readouterr().err


def test_a_signal_on_another_rank_stops_this_one_too():
    run, entries = make_run(steps=9), []
    engine = FakeEngine()
    engine.any_rank = lambda flag: len(engine.rates) >= 2
    with pytest.raises(Preempted, match="a signal to another rank after step 2 of 9"):
        train(run, engine, make_batches(run), [Diary("a", entries)])
    assert ("a", "end", 2) in entries


def test_a_signal_during_the_last_save_keeps_the_next_stage_from_starting():
    run, entries = make_run(steps=2), []

    class Saving(Diary):
        def on_end(self, step):
            super().on_end(step)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted, match="after step 2 of 2"):
        train(run, FakeEngine(), make_batches(run), [Saving("a", entries)])


def test_a_repeated_signal_is_ignored_while_saving():
    """torchrun passes a Ctrl-C on to processes that the terminal has already told: that must not break the save."""
    run, entries = make_run(steps=9), []

    def twice(step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted, match="SIGINT after step 1"):
        train(run, FakeEngine(during=twice), make_batches(run), [Diary("a", entries)])


def test_a_second_ctrl_c_later_interrupts_at_once(monkeypatch):
    now = iter([100.0, 101.5])
    monkeypatch.setattr(preemption.time, "monotonic", lambda: next(now))
    run, entries = make_run(steps=9), []

    def impatient(step):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(run, FakeEngine(during=impatient), make_batches(run), [Diary("a", entries)])
    assert entries == [("a", "start", 0), ("a", "close")]
