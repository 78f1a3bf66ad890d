"""Whole jobs on the built-in data: the real engine, loader and checkpoints, in this process."""

import json
import logging
import os
import signal
from collections import Counter
from contextlib import closing
from dataclasses import asdict

import pytest
import torch

from nvlm_train.config.compose import compose
from nvlm_train.engine.checkpoint import load, resolve
from nvlm_train.engine.manifest import Manifest
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.errors import CheckpointError, ConfigError, TrainingError
from nvlm_train.model.accounting import parameters
from nvlm_train.model.freeze import is_cross_attention
from nvlm_train.parallel import groups
from nvlm_train.training.audit import audit
from nvlm_train.training.logs import read_rows
from nvlm_train.training.preemption import Preempted
from nvlm_train.training.stages import build_engine, train_all
from nvlm_train.training.status import read_next

pytestmark = pytest.mark.slow

TINY = ("recipe=nvlm_d_tiny", "train.global_batch=4", "train.warmup_steps=1", "run.eval_batches=1", "run.device=cpu")


@pytest.fixture(scope="module", autouse=True)
def job():
    """The first engine joins a job of one process; leave it when done."""
    yield
    groups.stop()


@pytest.fixture(autouse=True)
def said(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def train(run_dir, *settings):
    train_all(compose([*TINY, f"run.dir={run_dir}", *settings]))


def weights_of(engine):
    return {name: param.detach().clone() for name, param in engine.stages()[0].named_parameters()}


def curve(run_dir):
    return [(row["stage"], row["step"], row["loss"]) for row in read_rows(run_dir / "metrics.jsonl")]


def ids(run_dir):
    return [(row["stage"], row["step"], row["ids"]) for row in read_rows(run_dir / "samples.jsonl")]


def test_both_stages_and_then_nothing_left_to_do(tmp_path, said):
    train(tmp_path, "train.steps=3", "run.examples_every=2")
    assert [point[:2] for point in curve(tmp_path)] == [(stage, step) for stage in ("pretrain", "sft") for step in (1, 2, 3)]
    assert "pretrain: starts from the backbones" in said.text
    assert f"sft: starts from the weights of {tmp_path}/checkpoints/pretrain/step-00000003, with a fresh optimizer" in said.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints", "config.yaml", "eval.jsonl", "examples.jsonl", "lock", "metrics.jsonl", "next", "predictions.jsonl",
        "report.html", "samples.jsonl", "segments.json", "status.json"]
    answered = [(row["stage"], row["step"]) for row in read_rows(tmp_path / "examples.jsonl")]
    assert answered == [(stage, step) for stage in ("pretrain", "sft") for step in (2, 3) for _ in range(8)]
    shown = read_rows(tmp_path / "predictions.jsonl")
    assert len(shown) == 8 and any(len(row["tiles"]) > 1 for row in shown) and all(row["truth"] for row in shown)
    assert [(row["stage"], row["step"]) for row in read_rows(tmp_path / "eval.jsonl")] == [("pretrain", 3), ("sft", 3)]
    assert all(row["mfu"] is None and row["tflops"]["total"] > 0 for row in read_rows(tmp_path / "metrics.jsonl"))

    before = (tmp_path / "metrics.jsonl").read_bytes()
    train(tmp_path, "train.steps=3")
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert "sft: all 3 steps are done" in said.text and read_next(tmp_path) == "done"
    with pytest.raises(TrainingError, match="already holds a run"):
        train(tmp_path, "train.steps=3", "run.resume=never")


def test_a_blend_that_is_changed_on_resume_begins_a_segment(tmp_path, said):
    """Weights change at step 6 of 12; the audit finds every slot as planned, each source's samples once a pass over both blends."""
    settings = ("stage=sft", "run.examples=0", "data.weigh_by=tokens", "data.shuffle_window=40")
    train(tmp_path, *settings, "train.steps=6")
    train(tmp_path, *settings, "train.steps=12", "data.blend.text.weight=5")
    segments = json.loads((tmp_path / "segments.json").read_text())["sft"]
    assert [segment["first_slot"] for segment in segments] == [0, 24] and segments[1]["window"] == 40
    assert segments == Manifest.read(resolve(tmp_path / "checkpoints" / "sft")).extra["segments"]
    assert sum(segments[1]["given"].values()) == 24
    assert "the blend was changed: from slot 24 on it is" in said.text
    stage, = audit(tmp_path)
    assert (stage.steps, stage.wrong) == (12, 0)
    assert sum(use.slots for use in stage.uses.values()) == 48 and all(use.most - use.least <= 1 for use in stage.uses.values())

    with pytest.raises(ConfigError, match="data.shuffle_window is 20, it was 40"):
        train(tmp_path, *settings, "train.steps=18", "data.blend.text.weight=5", "data.shuffle_window=20")


def test_a_preempted_job_goes_on_as_if_nothing_had_happened(tmp_path, said, monkeypatch):
    """Same losses to the last bit, each sample once: SIGTERM in the middle, then the same command again."""
    settings = ("stage=sft", "train.steps=8", "run.save_every=3", "run.async_save=true")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(straight, *settings)

    step = MegatronEngine.train_step

    def asked_to_stop(engine, batch, lr):
        """From the thread that trains, so that no signal can come when nobody catches it any more."""
        if len(curve(broken)) >= 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(engine, batch, lr)

    monkeypatch.setattr(MegatronEngine, "train_step", asked_to_stop)
    with pytest.raises(Preempted, match=r"stopped by SIGTERM after step \d of 8 \(sft\); everything is saved"):
        train(broken, *settings)
    monkeypatch.undo()
    stopped_at = len(curve(broken))
    assert 2 <= stopped_at < 8
    with open(broken / "metrics.jsonl", "a") as log:
        log.write('{"stage": "sft", "step": 7, "loss": 0.0}\n{"stage": "sft", "st')      # what a crash could have left

    train(broken, *settings)
    assert f"sft: goes on after step {stopped_at} of 8" in said.text
    assert curve(broken) == curve(straight)
    assert ids(broken) == ids(straight)
    rows = read_rows(broken / "samples.jsonl")
    seen = [n for row in rows for n in range(row["first_slot"], row["first_slot"] + len(row["ids"]))]
    assert seen == list(range(8 * 4))


def test_going_back_to_an_older_checkpoint_puts_the_later_ones_aside(tmp_path):
    settings = ("stage=sft", "train.steps=4", "run.save_every=2")
    train(tmp_path, *settings)
    first = curve(tmp_path)
    train(tmp_path, *settings, f"run.resume={tmp_path}/checkpoints/sft/step-00000002")
    assert curve(tmp_path) == first
    folders = sorted(path.name for path in (tmp_path / "checkpoints" / "sft").iterdir())
    assert [name for name in folders if name.startswith("step-")] == ["step-00000002", "step-00000004"]
    assert sum(name.startswith(".aside-step-00000004") for name in folders) == 1


def test_init_takes_the_weights_of_another_run(tmp_path, said):
    source, run_dir = tmp_path / "source", tmp_path / "run"
    train(source, "stage=pretrain", "train.steps=2")
    train(run_dir, "stage=sft", "train.steps=2", f"init={source}")
    assert f"sft: starts from the weights of {source}/checkpoints/pretrain/step-00000002" in said.text
    assert [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_another_architecture_takes_the_backbones_of_a_checkpoint_and_nothing_else(tmp_path, said):
    """A D run's checkpoint as a start of X is refused, with the way out; taken as backbones, exactly those two arrive."""
    source = tmp_path / "source"
    train(source, "stage=sft", "train.steps=2", "train.trainable=[vision,connector,language]")
    other = ("recipe=nvlm_x_tiny", "stage=sft", "train.global_batch=4", "train.warmup_steps=0", "run.eval_batches=1", "run.device=cpu")
    with pytest.raises(CheckpointError, match="architecture: nvlm_d in the checkpoint vs nvlm_x here") as refused:
        train_all(compose([*other, "train.steps=1", f"init={source}", f"run.dir={tmp_path / 'refused'}"]))
    assert f"model.language.weights={source}" in str(refused.value)

    weights = [f"model.{part}.weights={source}" for part in ("vision", "language")]
    runs = compose([*other, "train.steps=1", "train.lr=0", "train.min_lr=0", *weights, f"run.dir={tmp_path / 'x'}"])
    train_all(runs)
    assert f"language model from {source}" in said.text and "fresh connector and cross-attention" in said.text
    with closing(build_engine(compose([*TINY, "stage=sft", "train.steps=1", "train.warmup_steps=0"])[0])) as engine:
        fresh = weights_of(engine)
        load(resolve(source), engine, Manifest.read(resolve(source)).fingerprint, model_only=True)
        trained = weights_of(engine)
    with closing(build_engine(runs[0])) as engine:
        load(resolve(tmp_path / "x"), engine, Manifest.read(resolve(tmp_path / "x")).fingerprint, model_only=True)
        found = weights_of(engine)
    backbones = [name for name in trained if not name.startswith("connector.")]
    assert all(torch.equal(found[name], trained[name]) for name in backbones)
    assert any(not torch.equal(trained[name], fresh[name]) for name in backbones if name.startswith("language."))
    assert all((value == 0).all() for name, value in found.items() if name.endswith(".gate"))


@pytest.mark.parametrize("recipe", [
    "nvlm_d_tiny", "nvlm_d_tiny_6b", "nvlm_x_tiny", "nvlm_h_tiny", "flamingo_tiny", "llama3v_tiny"])
def test_accounting_counts_the_parameters_that_the_model_has(recipe, tmp_path):
    run = compose([f"recipe={recipe}", "stage=sft", f"run.dir={tmp_path}", "run.device=cpu"])[0]
    with closing(build_engine(run)) as engine:
        found = Counter()
        for name, parameter in engine.stages()[0].named_parameters():
            found["cross_attention" if is_cross_attention(name) else name.split(".")[0]] += parameter.numel()
    assert found == Counter(asdict(parameters(run.model)))
