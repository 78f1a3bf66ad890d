"""A job is told when its time limit is too short for a step and a checkpoint, as soon as that can be known."""

import json
import logging

import pytest
from training_fakes import FakeEngine, make_batches, make_run

from nvlm_train.training.loop import train
from nvlm_train.training.status import StatusFile
from nvlm_train.training.time_limit import TimeLimit, time_limit


@pytest.fixture(autouse=True)
def said(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def warnings(said):
    return [record.getMessage() for record in said.records if record.levelno == logging.WARNING]


def test_enough_time_is_only_told(said):
    run = make_run(steps=3)
    train(run, FakeEngine(), make_batches(run), [TimeLimit(end=1000 + 7500, step_s=60, save_s=300, now=lambda: 1000)])
    assert "the job's time limit is in 2h 05m" in said.text
    assert warnings(said) == []


def test_too_little_by_what_an_earlier_job_took_is_said_at_the_start_and_once(said):
    limit = TimeLimit(end=1300, step_s=20, save_s=300, now=lambda: 1000)
    limit.on_start(4)
    assert len(warnings(said)) == 1 and "ends in 5m 00s, but a step takes 20s and a checkpoint 5m 00s" in warnings(said)[0]
    run = make_run(steps=3)
    train(run, FakeEngine(), make_batches(run), [limit])
    assert len(warnings(said)) == 1


def test_without_an_earlier_job_the_first_step_tells(said):
    run, now = make_run(steps=3), iter([1000, 1000, 1299.9999999])
    train(run, FakeEngine(), make_batches(run), [TimeLimit(end=1299, now=lambda: next(now))])
    assert len(warnings(said)) == 1 and "but a step takes 0s: this job" in warnings(said)[0]


def test_what_an_earlier_job_left_is_found(tmp_path, said):
    rows = [{"stage": "pretrain", "step": 1, "step_s": 90.0}, {"stage": "pretrain", "step": 2, "step_s": 30.0}, {"stage": "sft", "step": 1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with StatusFile(tmp_path, 3) as status:
        status.saved("pretrain", 2, 15.5)
    time_limit(tmp_path, "pretrain", {"SLURM_JOB_END_TIME": "0"}).on_start(2)
    assert "a step takes 30s and a checkpoint 16s" in warnings(said)[0]
    said.clear()
    time_limit(tmp_path, "sft", {"SLURM_JOB_END_TIME": "0"}).on_start(0)
    assert warnings(said) == [], "nothing is known of this stage's steps yet"
    assert time_limit(tmp_path, "sft", {}) is None
    assert time_limit(tmp_path, "sft", {"SLURM_JOB_END_TIME": "N/A"}) is None
