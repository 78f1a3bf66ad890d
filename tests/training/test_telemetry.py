import logging
import time
from dataclasses import replace

import pytest
from training_fakes import FakeEngine, make_batches, make_run, with_run

from nvlm_train.config.schema import Data, Source
from nvlm_train.training import telemetry as module
from nvlm_train.training.loop import train
from nvlm_train.training.metrics import Recorder
from nvlm_train.training.telemetry import Guarded, WandbSink, flat, telemetry


def train_with(run, sinks):
    return train(run, FakeEngine(), make_batches(run), [Recorder(run, FakeEngine(), sinks, [], lambda step: True, 1, None)])


def test_nothing_is_imported_or_sent_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "import_module", lambda name: pytest.fail(f"imports {name}"))
    run = make_run(tmp_path)
    assert telemetry([run], run, tmp_path, 0) == []


def test_a_tracker_that_cannot_start_costs_one_warning(tmp_path, monkeypatch, caplog):
    def unreachable(name):
        raise ConnectionError("api.wandb.ai did not answer\nand more")

    monkeypatch.setattr(module, "import_module", unreachable)
    run = with_run(make_run(tmp_path, steps=3), wandb="online", tensorboard=True)
    assert train_with(run, telemetry([run], run, tmp_path, 0)) == 3
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    why = "is off for the rest of this stage (ConnectionError: api.wandb.ai did not answer); training goes on"
    assert warnings == [f"wandb {why}", f"TensorBoard {why}"]


def test_a_tracker_that_fails_later_goes_quiet_after_one_warning(caplog):
    class Failing:
        calls = 0

        def step(self, record):
            self.calls += 1
            raise RuntimeError("quota")

        def evaluation(self, row):
            pytest.fail("spoken to after it failed")

        close = evaluation

    failing = Failing()
    guarded = Guarded("wandb", lambda: failing)
    assert train_with(make_run(steps=4), [guarded]) == 4
    guarded.evaluation({})
    assert failing.calls == 1 and len(caplog.records) == 1


def test_rows_are_flattened_to_numbers():
    row = {"stage": "sft", "step": 3, "loss": 1.5, "mfu": None, "skipped": False, "tflops": {"vit": 2.0}, "ids": ["a"]}
    assert flat(row, "sft") == {"sft/step": 3, "sft/loss": 1.5, "sft/skipped": 0.0, "sft/tflops/vit": 2.0}


class RecordingWandb:
    """What `wandb` is asked to do."""

    def __init__(self):
        self.inits, self.logged, self.metrics, self.finished = [], [], [], 0
        self.Settings = dict

    def init(self, **arguments):
        self.inits.append(arguments)
        return self

    def define_metric(self, name, **arguments):
        self.metrics.append(name)

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


def test_wandb_keeps_one_run_over_stages_and_resumes_and_never_sees_a_secret(tmp_path, monkeypatch):
    wandb = RecordingWandb()
    monkeypatch.setattr(module, "import_module", {"wandb": wandb}.__getitem__)
    data = Data(blend={"web": Source("s3://user:hunter2@host/shards")})
    runs = [with_run(make_run(tmp_path, stage=stage, steps=2, data=data), wandb="offline") for stage in ("pretrain", "sft")]
    for run in runs:
        train_with(run, telemetry(runs, run, tmp_path, 0))
    first, second = wandb.inits
    assert first["id"] == second["id"] == (tmp_path / "wandb_id").read_text()
    assert first["resume"] == "allow" and first["mode"] == "offline"
    assert set(first["config"]) == {"pretrain", "sft"} and "hunter2" not in str(first["config"])
    assert wandb.metrics == ["pretrain/step", "pretrain/*", "sft/step", "sft/*"]
    assert [values[f"{stage}/step"] for values, stage in zip(wandb.logged, ["pretrain"] * 2 + ["sft"] * 2)] == [1, 2, 1, 2]
    assert wandb.finished == 2


def test_wandb_offline_for_real(tmp_path, caplog):
    pytest.importorskip("wandb", reason="wandb is an optional extra and is not installed")
    run = with_run(make_run(tmp_path, steps=2), wandb="offline")
    train_with(run, [WandbSink([run], run, tmp_path)])
    written = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(written) == 1 and (tmp_path / "wandb_id").read_text() in written[0].name
    until = time.monotonic() + 30    # wandb's own process may still be writing when finish() returns
    while b"pretrain/loss" not in written[0].read_bytes() and time.monotonic() < until:
        time.sleep(0.1)
    assert b"pretrain/loss" in written[0].read_bytes()


def test_tensorboard_files_hold_the_curves_and_forget_what_is_trained_again(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator",
                                      reason="tensorboard is an optional extra and is not installed")
    run = with_run(make_run(tmp_path, steps=4), tensorboard=True)
    train_with(run, telemetry([run], run, tmp_path, 0))
    again = replace(run, train=replace(run.train, steps=3))
    sinks = telemetry([again], again, tmp_path, 2)
    recorder = Recorder(again, FakeEngine(), sinks, [], lambda step: True, 1, None)
    train(again, FakeEngine(losses=[9.0]), make_batches(again, 2), [recorder], 2)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "pretrain")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 1.0), (3, 9.0)]
