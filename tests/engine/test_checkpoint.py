"""Saving, finding, keeping and loading checkpoints, on one rank."""

import json
import os
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from checkpoint_toys import FINGERPRINT, TableEngine, facts
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from nvlm_train.config.schema import Language, Model, Run
from nvlm_train.engine import folders
from nvlm_train.engine.checkpoint import VALIDATION_LOSS, CheckpointStore, load, resolve
from nvlm_train.engine.manifest import Manifest, differences, fingerprint
from nvlm_train.engine.sharded_write import ShardedWrite
from nvlm_train.errors import CheckpointError, TrainingError


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run" / "checkpoints" / "pretrain", keep_last=2)


def loaded(path: Path, seed: int = 99, **options) -> TableEngine:
    engine = TableEngine(seed)
    load(path, engine, FINGERPRINT, **options)
    return engine


# Round trips


def test_what_is_loaded_is_what_was_saved_and_the_manifest_says_what_it_is(store):
    store.save(TableEngine(1), facts(cursor=4096, rng={"seed": 7}, extra={"blend": "a"}), 100)
    engine = TableEngine(2)
    manifest = load(store.latest(), engine, FINGERPRINT)
    assert engine.same_as(TableEngine(1)) and not engine.same_as(TableEngine(2))
    assert (manifest.step, manifest.stage, manifest.cursor) == (100, "pretrain", 4096)
    assert (manifest.rng, manifest.extra) == ({"seed": 7}, {"blend": "a"})
    assert manifest.config == {"train": {"lr": 1e-3}} and manifest.versions["torch"] == version("torch")
    assert manifest.contents["model"]["connector.weight"] == ["float32", [64, 48]]
    assert len(manifest.save_id) == 32


def test_every_file_of_the_folder_is_in_the_manifest(store):
    store.save(TableEngine(1), facts(), 100)
    assert {path.name for path in store.latest().iterdir()} == {*Manifest.read(store.latest()).files, "manifest.json"}


def test_an_asynchronous_save_holds_the_values_of_its_moment(store):
    store.save(TableEngine(1), facts(), 100)
    engine = TableEngine(1)
    store.save(engine, facts(), 200, asynchronous=True)
    for table in (engine.model, engine.moments):
        for value in table.values():
            value.zero_()
    assert store.finish()
    synchronous, asynchronous = (loaded(store.root / folders.step_folder(step)) for step in (100, 200))
    assert asynchronous.same_as(TableEngine(1)) and asynchronous.same_as(synchronous)


def test_an_asynchronous_save_is_not_there_until_it_is_finished(store, monkeypatch):
    write, may_go_on = ShardedWrite.write, threading.Event()

    def wait_then_write(self):
        assert may_go_on.wait(30)
        return write(self)

    monkeypatch.setattr(ShardedWrite, "write", wait_then_write)
    store.save(TableEngine(1), facts(), 100, asynchronous=True)
    assert not store.finish(wait=False) and store.steps() == []
    may_go_on.set()
    assert store.finish() and store.steps() == [100]
    assert store.finish(wait=False)     # nothing under way: nothing to do


def test_the_next_save_first_publishes_the_one_under_way(store):
    store.save(TableEngine(1), facts(), 100, asynchronous=True)
    store.save(TableEngine(2), facts(), 200, asynchronous=True)
    assert store.steps() == [100]
    store.finish()
    assert store.steps() == [100, 200]


def test_a_failed_asynchronous_write_is_raised_when_it_is_finished_and_leaves_nothing(store, monkeypatch):
    store.save(TableEngine(1), facts(), 100)

    def fail(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ShardedWrite, "write", fail)
    store.save(TableEngine(2), facts(), 200, asynchronous=True)
    with pytest.raises(TrainingError, match=r"saving step 200.*Input/output error.*newest good checkpoint is step-00000100"):
        store.finish()
    assert [path.name for path in store.root.iterdir()] == ["step-00000100"]
    monkeypatch.undo()
    store.save(TableEngine(3), facts(), 300)
    assert store.steps() == [100, 300]


def test_saving_starts_no_process(store):
    def children() -> str:
        return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()

    before = children()
    store.save(TableEngine(1), facts(), 100, asynchronous=True)
    assert children() == before
    store.finish()
    assert children() == before


# Which are kept


def test_the_newest_and_the_best_are_kept(store):
    for step in (100, 200, 300, 400):
        store.save(TableEngine(step), facts(), step)
        if step == 200:
            store.mark_best(200)
    assert store.steps() == [200, 300, 400] and store.best() == 200
    store.mark_best(400)
    store.save(TableEngine(500), facts(), 500)
    assert store.steps() == [400, 500]


def test_the_checkpoint_resumed_from_stays_until_a_newer_one_is_durable(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep_last=1)
    store.save(TableEngine(1), facts(), 100)

    def fail(partial, target):
        raise OSError("the rename failed")

    monkeypatch.setattr(folders, "publish", fail)
    with pytest.raises(TrainingError, match="the rename failed"):
        store.save(TableEngine(2), facts(), 200)
    assert store.steps() == [100]
    monkeypatch.undo()
    store.save(TableEngine(2), facts(), 200)
    assert store.steps() == [200]


def test_a_step_cannot_be_marked_best_unless_it_is_there(store):
    with pytest.raises(CheckpointError, match="step 7 cannot be marked best"):
        store.mark_best(7)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"step": "x"}'])
def test_an_unreadable_mark_of_the_best_counts_as_none(store, text, caplog):
    store.save(TableEngine(1), facts(), 100)
    (store.root / "best.json").write_text(text)
    assert store.best() is None and "best.json" in caplog.text


def test_going_back_puts_later_checkpoints_aside_so_that_new_ones_are_the_newest(store):
    for step in (100, 200, 300):
        store.save(TableEngine(step), facts(), step)
    engine = TableEngine()
    store.rewind_to(engine, 200)
    assert store.steps() == [200]
    store.save(engine, facts(), 250)
    assert store.steps() == [200, 250]
    aside = [path for path in store.root.iterdir() if path.name.startswith(".aside-step-00000300")]
    assert len(aside) == 1 and loaded(aside[0]).same_as(TableEngine(300))


def test_an_existing_step_is_never_overwritten(store):
    store.save(TableEngine(1), facts(), 100)
    with pytest.raises(CheckpointError, match="step-00000100 exists already"):
        store.save(TableEngine(2), facts(), 100)
    assert loaded(store.latest()).same_as(TableEngine(1))


def test_an_incomplete_folder_in_the_way_is_put_aside_with_a_warning(store, caplog):
    (store.root / "step-00000100").mkdir(parents=True)
    (store.root / "step-00000100" / "__0_0.distcp").write_bytes(b"half")
    store.save(TableEngine(1), facts(), 100)
    assert store.steps() == [100] and "put aside" in caplog.text
    (aside,) = (path for path in store.root.iterdir() if path.name.startswith(".aside-"))
    assert (aside / "__0_0.distcp").read_bytes() == b"half"


def test_what_interrupted_saves_left_is_named_then_removed_and_nothing_else_is(store, caplog):
    for name in (".partial-step-00000050-ab", ".removing-step-00000010-cd", ".aside-step-00000020-ef", "notes"):
        (store.root / name).mkdir(parents=True)
    (store.root / ".partial-step-00000050-ab" / "__0_0.distcp").write_bytes(b"half")
    assert store.latest() is None and ".partial-step-00000050-ab" in caplog.text
    store.save(TableEngine(1), facts(), 100)
    assert sorted(path.name for path in store.root.iterdir()) == [".aside-step-00000020-ef", "notes", "step-00000100"]


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="keep_last=0"):
        CheckpointStore(tmp_path, keep_last=0)


# Finding


def test_resolve_takes_a_run_a_stage_or_a_step_and_prefers_the_furthest_stage(tmp_path):
    run = tmp_path / "run"
    for stage, step in (("pretrain", 300), ("sft", 50), ("sft", 90)):
        CheckpointStore(run / "checkpoints" / stage, keep_last=5).save(TableEngine(step), facts(stage=stage), step)
    assert resolve(run) == run / "checkpoints" / "sft" / "step-00000090"
    assert resolve(run / "checkpoints") == resolve(run)
    assert resolve(str(run / "checkpoints" / "pretrain")).name == "step-00000300"
    step = run / "checkpoints" / "sft" / "step-00000050"
    assert resolve(step) == step


def test_resolve_says_what_it_looked_at(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve(tmp_path / "nowhere")
    (tmp_path / "weights.bin").touch()
    with pytest.raises(CheckpointError, match="it is a file"):
        resolve(tmp_path / "weights.bin")
    with pytest.raises(CheckpointError, match=r"no complete checkpoint in .*weights\.bin"):
        resolve(tmp_path)
    (tmp_path / "step-00000001").mkdir()
    with pytest.raises(CheckpointError, match=r"step-00000001 is not a complete checkpoint.*manifest\.json"):
        resolve(tmp_path / "step-00000001")


# Loading into something else


def test_only_the_weights_can_be_taken(store):
    store.save(TableEngine(1), facts(), 100)
    engine = loaded(store.latest(), seed=2, model_only=True)
    assert engine.same_as(TableEngine(1), optimizer=False)
    assert engine.updates == 2 and torch.equal(engine.moments["connector.weight"], TableEngine(2).moments["connector.weight"])


def test_keys_that_one_side_lacks_are_listed_with_the_nearest_name(store):
    store.save(TableEngine(1, {"connector.weight": (4, 4), "vision.norm": (4,)}), facts(), 100)
    other = TableEngine(2, {"connector.weights": (4, 4), "vision.norm": (4,)})
    with pytest.raises(CheckpointError) as caught:
        load(store.latest(), other, FINGERPRINT, model_only=True)
    assert "wanted here but not in the checkpoint: connector.weights (nearest there: connector.weight)" in str(caught.value)
    assert "in the checkpoint but not in this model: connector.weight (nearest there: connector.weights)" in str(caught.value)


def test_keys_named_in_advance_may_be_lacking_and_keep_their_values(store):
    store.save(TableEngine(1, {"connector.weight": (4, 4), "old.bias": (4,)}), facts(), 100)
    other = TableEngine(2, {"connector.weight": (4, 4), "gates.0": (4,)})
    load(store.latest(), other, FINGERPRINT, model_only=True, allow=("gates", "old.*"))
    assert torch.equal(other.model["gates.0"], TableEngine(2, {"connector.weight": (4, 4), "gates.0": (4,)}).model["gates.0"])
    saved = TableEngine(1, {"connector.weight": (4, 4), "old.bias": (4,)})
    assert torch.equal(other.model["connector.weight"], saved.model["connector.weight"])
    with pytest.raises(CheckpointError, match=r"old\.bias"):
        load(store.latest(), other, FINGERPRINT, model_only=True, allow=("gates",))


class FoldedEngine(TableEngine):
    """Stores `mlp`, gate above up, as two tensors, as Megatron does for SwiGLU; `names` are their keys."""

    def __init__(self, seed: int, names: tuple[str, str] = ("gate", "up")):
        super().__init__(seed, {"mlp": (8, 4), "norm": (4,)})
        self.names = names

    def sharded_state(self, loading: bool, optimizer: bool = True) -> dict:
        def build(key, tensor, replica_id, flattened_range):
            return {name: ShardedTensor.from_rank_offsets(f"{key}.{name}", half, replica_id=replica_id)
                    for name, half in zip(self.names, tensor.chunk(2), strict=True)}

        def merge(halves):
            return torch.cat(list(halves.values()))

        state = super().sharded_state(loading, optimizer)
        state["model"]["mlp"] = ShardedTensorFactory("mlp", self.model["mlp"], build, merge)
        return state


def test_a_parameter_stored_as_two_tensors_comes_back_whole(store):
    store.save(FoldedEngine(1), facts(), 100)
    engine = FoldedEngine(2)
    load(store.latest(), engine, FINGERPRINT)
    assert engine.same_as(FoldedEngine(1))


def test_a_parameter_that_is_lacking_in_part_keeps_its_value_whole(store):
    store.save(FoldedEngine(1, ("gate", "down")), facts(), 100)
    engine = FoldedEngine(2)
    load(store.latest(), engine, FINGERPRINT, model_only=True, allow=("mlp",))
    assert torch.equal(engine.model["mlp"], FoldedEngine(2).model["mlp"])
    assert torch.equal(engine.model["norm"], FoldedEngine(1).model["norm"])


def test_facts_that_no_manifest_can_hold_are_refused_before_training():
    with pytest.raises(CheckpointError, match="PosixPath is not JSON serializable"):
        facts(extra={"where": Path("runs")})


def test_another_shape_is_told_with_both(store):
    store.save(TableEngine(1, {"connector.weight": (4, 6)}), facts(), 100)
    with pytest.raises(CheckpointError, match=r"connector\.weight has shape \[4, 6\] in the checkpoint and \[4, 8\] here"):
        load(store.latest(), TableEngine(2, {"connector.weight": (4, 8)}), FINGERPRINT)


def test_another_dtype_is_refused_for_resuming_and_cast_for_a_new_start(store):
    store.save(TableEngine(1), facts(), 100)
    half = TableEngine(2, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match="float32 in the checkpoint and bfloat16 here"):
        load(store.latest(), half, FINGERPRINT)
    load(store.latest(), half, FINGERPRINT, model_only=True)
    assert torch.equal(half.model["connector.weight"], TableEngine(1).model["connector.weight"].bfloat16())


# Fingerprints


def test_the_fingerprint_of_a_run_changes_with_what_gives_weights_their_meaning_and_with_nothing_else():
    def of(**model) -> dict:
        return fingerprint(Run("tiny", "sft", model=Model(**model)), "aa11")

    assert differences(of(), of(dtype="bf16", kernels="te", language=Language(weights="backbone.safetensors"))) == []
    assert differences(of(), of(language=Language(vocab=1024))) == ["language.vocab: 152064 in the checkpoint vs 1024 here"]
    assert len(differences(of(), of(architecture="nvlm_x", language=Language(heads=32, rope_base=1e4)))) == 3
    assert differences(of(), fingerprint(Run("tiny", "sft"), "bb22")) == ["tokenizer: aa11 in the checkpoint vs bb22 here"]
    assert json.loads(json.dumps(of())) == of()


def test_looking_for_checkpoints_needs_no_megatron():
    """`show-config` and friends look for checkpoints without waiting for it."""
    code = "import sys, nvlm_train.engine.folders; sys.exit(any(name.startswith('megatron') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=Path(__file__).parents[2])


def test_the_lowest_validation_loss_is_kept_beside_the_newest(tmp_path):
    store = CheckpointStore(tmp_path / "sft", keep_last=1)
    for step, loss in ((100, 2.0), (200, 1.0), (300, 1.5), (400, None), (500, 1.0)):
        store.save(TableEngine(step), facts(extra={VALIDATION_LOSS: loss}), step)
    assert store.best() == 200 and store.steps() == [200, 500]
