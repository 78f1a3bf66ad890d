import json

import pytest
from training_fakes import Collector, FakeEngine, make_batches, make_row, make_run

from nvlm_train.contracts import Slot
from nvlm_train.errors import TrainingError
from nvlm_train.training.hooks import Checkpoints, RefusedBudget, Report, Validation
from nvlm_train.training.loop import train
from nvlm_train.training.metrics import StepRecord
from nvlm_train.training.preemption import Preempted


def run_with_checkpoints(run, engine=None, start=0, poll=None):
    calls = []
    hook = Checkpoints(
        run, save=lambda step, cursor: calls.append(("save", step, cursor)),
        finish=lambda wait: calls.append(("finish",)) if wait else poll and poll(calls),
        before=lambda: calls.append(("sync",)), cursor=start * run.train.global_batch)
    train(run, engine or FakeEngine(), make_batches(run, start), [hook], start)
    return calls


def test_checkpoints_come_every_so_often_and_at_the_end_after_the_logs_are_durable():
    calls = run_with_checkpoints(make_run(steps=5, run={"save_every": 2}))
    assert calls == [("sync",), ("save", 2, 4), ("sync",), ("save", 4, 8), ("sync",), ("save", 5, 10), ("finish",)]


def test_the_last_step_is_saved_once_when_it_is_due_anyway():
    assert run_with_checkpoints(make_run(steps=4, run={"save_every": 2}))[-3:] == [("sync",), ("save", 4, 8), ("finish",)]


def test_by_default_only_the_end_is_saved():
    assert run_with_checkpoints(make_run(steps=3)) == [("sync",), ("save", 3, 6), ("finish",)]


def test_a_save_under_way_is_looked_after_between_steps():
    calls = run_with_checkpoints(make_run(steps=2), poll=lambda calls: calls.append(("poll",)))
    assert calls == [("poll",), ("poll",), ("sync",), ("save", 2, 4), ("finish",)]


def test_a_run_that_is_told_to_stop_saves_where_it_stands():
    run, calls = make_run(steps=9, run={"save_every": 5}), []
    engine = FakeEngine()
    engine.any_rank = lambda flag: len(engine.rates) >= 3
    hook = Checkpoints(run, save=lambda *at: calls.append(at), finish=lambda wait: None, before=lambda: None, cursor=0)
    with pytest.raises(Preempted):
        train(run, engine, make_batches(run), [hook])
    assert calls == [(3, 6)]


def test_validation_reports_the_weighted_mean_over_sources_at_the_right_steps():
    run, sink, engine = make_run(steps=5, run={"eval_every": 2}), Collector(), FakeEngine()
    train(run, engine, make_batches(run), [Validation(run, engine, [make_row()], [sink])])
    assert [row["step"] for row in sink.evaluations] == [2, 4, 5]
    row = sink.evaluations[0]
    assert (row["stage"], row["kind"], row["loss"], row["source_losses"]) == ("pretrain", "validation", 1.0, {"a": 1.5, "b": 0.5})


def test_validation_is_not_run_on_borrowed_time():
    run, engine = make_run(steps=9), FakeEngine()
    engine.any_rank = lambda flag: len(engine.rates) >= 3
    with pytest.raises(Preempted):
        train(run, engine, make_batches(run), [Validation(run, engine, [make_row()], [])])
    assert engine.evaluated == 0


def slots(start, refused):
    return [Slot(start + i, f"s{start + i}", "web", "broken_image" if i < refused else None) for i in range(50)]


def test_refused_samples_are_allowed_up_to_the_budget():
    budget = RefusedBudget(make_run())      # data.max_refused: 5%
    for step in range(4):
        budget(StepRecord({}, slots(step * 50, 2)))
    budget(StepRecord({}, slots(200, 4)))   # 12 of 250


def test_too_many_refused_samples_stop_the_run_with_their_reasons_but_not_before_a_hundred():
    budget = RefusedBudget(make_run())
    budget(StepRecord({}, slots(0, 50)))    # all of the first 50: too few to judge
    with pytest.raises(TrainingError) as caught:
        budget(StepRecord({}, [*slots(50, 0)[:-1], Slot(99, "s99", "web", "too_long")]))
    message = str(caught.value)
    assert "51 of 100 samples were refused (51.0%)" in message and "data.max_refused=5.0%" in message
    assert "50 broken_image (such as web/s0); 1 too_long (such as web/s99)" in message


def test_a_resumed_budget_stops_where_an_unbroken_one_would():
    first = RefusedBudget(make_run())
    first(StepRecord({}, slots(0, 2)))
    second = RefusedBudget(make_run(), json.loads(json.dumps(first.state)))      # as a checkpoint's manifest keeps it
    with pytest.raises(TrainingError, match=r"6 of 100 samples were refused \(6\.0%\).* 6 broken_image \(such as web/s0\)"):
        second(StepRecord({}, slots(50, 4)))


def test_a_report_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    run, written = make_run(steps=5), []

    def write(path):
        written.append(path)
        raise OSError("disk full")

    assert train(run, FakeEngine(), make_batches(run), [Report(write, tmp_path, every=2)]) == 5
    assert written == [tmp_path] * 3, "steps 2 and 4, and the end"
    assert "the report could not be written (OSError: disk full); training goes on" in caplog.text
