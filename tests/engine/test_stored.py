"""Weights read out of a checkpoint without an engine are those that an engine holds, whatever layout wrote them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_toys import TableEngine, facts
from launching import launch

from nvlm_train.config.compose import compose
from nvlm_train.engine.checkpoint import CheckpointStore
from nvlm_train.engine.manifest import Manifest, record_file
from nvlm_train.engine.stored import StoredWeights, unpadded
from nvlm_train.errors import CheckpointError
from nvlm_train.model.weights import component_tensors
from nvlm_train.training.stages import build_engine

# Five heads of the encoder and 1,023 rows of the vocabulary: two ranks need one more of each.
WORDS = ["recipe=nvlm_x_tiny", "vision=tiny_6b", "stage=sft", "run.device=cpu", "model.language.vocab=1023",
         "model.cross_attention.gate_init=0.5"]


@pytest.fixture
def saved(tmp_path) -> Path:
    store = CheckpointStore(tmp_path / "checkpoints" / "pretrain", keep_last=1)
    store.save(TableEngine(1), facts(), 100)
    return store.latest()


@pytest.mark.full
@pytest.mark.distributed
def test_tensors_written_by_four_ranks_come_whole_and_unpadded(tmp_path):
    layout = ["layout.tensor=2", "layout.pipeline=2"]
    script = Path(__file__).with_name("stored_ranks.py")
    done = launch(script, 4, tmp_path / "checkpoints" / "sft", *WORDS, *layout, folder=tmp_path)
    assert done.returncode == 0 and not done.survivors, done.output[-4000:]
    [run] = compose(WORDS)
    engine = build_engine(run)      # initial weights do not depend on the layout
    known = {}
    for part in ("vision", "connector", "language"):
        known |= component_tensors(engine.stages(), part)
    engine.close()
    stored = StoredWeights(tmp_path)
    stored.verify(known)
    assert len(stored.files_of(known)) == 4
    assert stored.dtypes.keys() == known.keys() and len(known) > 50
    for name, tensor in known.items():
        read = stored.tensor(name)
        assert torch.equal(read, tensor) and stored.shapes[name] == tuple(tensor.shape), name
    padded = {name for name in known if tuple(stored._index.state_dict_metadata[name].size) != tuple(known[name].shape)}
    assert {"language.embedding.weight", "vision.layers.0.attention.linear_qkv.weight"} <= padded


def test_the_optimizer_beside_the_weights_is_left_alone(saved):
    stored, engine = StoredWeights(saved), TableEngine(1)
    assert stored.dtypes == dict.fromkeys(engine.model, torch.float32)
    assert all(torch.equal(stored.tensor(name), tensor) for name, tensor in engine.model.items())


def test_bfloat16_stays_bfloat16(tmp_path):
    store, engine = CheckpointStore(tmp_path, keep_last=1), TableEngine(3, dtype=torch.bfloat16)
    store.save(engine, facts(), 1)
    assert torch.equal(StoredWeights(tmp_path).tensor("connector.weight"), engine.model["connector.weight"])


def test_memory_is_that_of_one_tensor(saved, monkeypatch):
    """One tensor is asked of torch at a time, and nothing is kept."""
    asked = []
    load = torch.distributed.checkpoint.load
    monkeypatch.setattr(torch.distributed.checkpoint, "load",
                        lambda state, **rest: (asked.append(list(state)), load(state, **rest)))
    stored = StoredWeights(saved)
    for name in stored.dtypes:
        stored.tensor(name)
    assert asked == [[name] for name in stored.dtypes]
    assert not [value for value in vars(stored).values() if isinstance(value, torch.Tensor)]


def test_damage_is_found_by_verify(saved):
    stored = StoredWeights(saved)
    [file, *_] = stored.files_of(stored.dtypes)
    content = bytearray((saved / file).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"file {file} was damaged or replaced"):
        stored.verify(["connector.weight", *stored.dtypes])


def test_an_unfinished_checkpoint_is_refused(saved):
    (saved / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        StoredWeights(saved)


def test_a_manifest_that_names_more_than_the_index_holds_is_refused(saved):
    manifest = Manifest.read(saved)
    (saved / "manifest.json").unlink()
    contents = {**manifest.contents, "model": {**manifest.contents["model"], "vision.position": ["float32", [1]]}}
    replace(manifest, contents=contents, files={name: record_file(saved / name) for name in manifest.files}).write(saved)
    with pytest.raises(CheckpointError, match=r"vision\.position, which the index does not hold"):
        StoredWeights(saved)


def test_padding_that_says_something_is_refused():
    full = torch.zeros(4, 3)
    full[:2] = 1
    assert torch.equal(unpadded(full, (2, 3), "w"), torch.ones(2, 3))
    full[3, 2] = 0.5
    with pytest.raises(CheckpointError, match=r"w: of \(4, 3\) all beyond \(2, 3\) should be padding"):
        unpadded(full, (2, 3), "w")
    with pytest.raises(CheckpointError, match=r"holds \(4, 3\), and \(5, 3\) is wanted"):
        unpadded(full, (5, 3), "w")
