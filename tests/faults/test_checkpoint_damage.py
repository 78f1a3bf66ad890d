"""Damaged, mixed and foreign checkpoints: each is refused, with the file and both values named, and the model stays as it was."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_toys import FINGERPRINT, TableEngine, facts

from nvlm_train.engine.checkpoint import CheckpointStore, load, resolve
from nvlm_train.engine.manifest import Manifest, record_file
from nvlm_train.errors import CheckpointError

SHARD = "__0_0.distcp"


@pytest.fixture
def saved(tmp_path) -> Path:
    """Two checkpoints, of steps 100 and 200. The newer one's folder."""
    store = CheckpointStore(tmp_path / "checkpoints" / "pretrain", keep_last=2)
    store.save(TableEngine(1), facts(), 100)
    store.save(TableEngine(2), facts(), 200)
    return store.latest()


def refusal(folder: Path, fingerprint=FINGERPRINT) -> str:
    """What loading says; the model must be untouched."""
    engine = TableEngine(3)
    with pytest.raises(CheckpointError) as caught:
        load(folder, engine, fingerprint)
    assert engine.same_as(TableEngine(3))
    return str(caught.value)


def flip_bit(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [SHARD, ".metadata", "common.pt", "metadata.json"])
def test_one_flipped_bit_in_any_file_is_found(saved, name):
    before = record_file(saved / name).sha256
    flip_bit(saved / name, (saved / name).stat().st_size // 2)
    message = refusal(saved)
    assert name in message and before in message and record_file(saved / name).sha256 in message


def test_every_byte_of_the_manifest_is_covered_by_its_own_hash(saved):
    path = saved / "manifest.json"
    whole = path.read_text()
    for old, new in (('"cursor": 0', '"cursor": 1'), ('"step": 200', '"step": 201'), ('"lr": 0.001', '"lr": 0.002')):
        assert old in whole
        path.write_text(whole.replace(old, new))
        assert "changed after it was written" in refusal(saved)


def test_a_zeroed_middle_is_found(saved):
    data = bytearray((saved / SHARD).read_bytes())
    third = len(data) // 3
    data[third:2 * third] = bytes(third)
    (saved / SHARD).write_bytes(data)
    assert SHARD in refusal(saved)


@pytest.mark.parametrize("kept", [0, 1000])
def test_a_truncated_file_is_named_with_both_sizes(saved, kept):
    size = (saved / SHARD).stat().st_size
    (saved / SHARD).write_bytes((saved / SHARD).read_bytes()[:kept])
    message = refusal(saved)
    assert SHARD in message and f"{size:,}" in message and f"has {kept:,}" in message


@pytest.mark.parametrize("name", [SHARD, ".metadata", "common.pt", "metadata.json", "manifest.json"])
def test_a_missing_file_is_named_and_the_older_checkpoint_is_the_newest_complete_one(saved, name, caplog):
    (saved / name).unlink()
    assert name in refusal(saved)
    assert resolve(saved.parents[2]).name == "step-00000100"
    assert "step-00000200" in caplog.text and "passed over" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', "\x00\xff"])
def test_a_garbled_manifest_is_one_line_of_error(saved, text):
    (saved / "manifest.json").write_text(text)
    assert "manifest.json" in refusal(saved)


def test_a_manifest_of_a_later_schema_is_refused_by_number(saved):
    path = saved / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    assert "schema 99" in refusal(saved) and "schema 1" in refusal(saved)


def test_files_of_two_saves_in_one_folder_are_refused(saved):
    older = saved.with_name("step-00000100")
    shutil.copy(older / SHARD, saved / SHARD)     # same name, same size, other weights
    assert (saved / SHARD).stat().st_size == (older / SHARD).stat().st_size
    assert SHARD in refusal(saved)


def test_a_file_that_is_not_of_this_save_is_refused(saved):
    shutil.copy(saved / SHARD, saved / "__1_0.distcp")
    assert "__1_0.distcp" in refusal(saved) and "mixed" in refusal(saved)


def test_another_vocabulary_architecture_or_tokenizer_is_told_with_both_values(saved):
    wanted = {**FINGERPRINT, "architecture": "nvlm_x", "language.vocab": 2048, "tokenizer": "bb22"}
    message = refusal(saved, wanted)
    assert "architecture: nvlm_d in the checkpoint vs nvlm_x here" in message
    assert "language.vocab: 1024 in the checkpoint vs 2048 here" in message
    assert "tokenizer: aa11 in the checkpoint vs bb22 here" in message


def test_the_fingerprint_is_compared_before_any_large_file_is_read(saved):
    flip_bit(saved / SHARD, 1000)
    assert "another model" in refusal(saved, {**FINGERPRINT, "architecture": "nvlm_x"})


def test_a_manifest_that_lists_less_than_the_folder_holds_is_refused(saved):
    manifest = Manifest.read(saved)
    (saved / "manifest.json").unlink()
    replace(manifest, files={name: record for name, record in manifest.files.items() if name != SHARD}).write(saved)
    assert SHARD in refusal(saved)
