"""Crafted checkpoints that would run code. Each carries a manifest that fits it, so only the unpickling stands in the way."""

import io
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_toys import FINGERPRINT, TableEngine, facts
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from nvlm_train.engine.checkpoint import CheckpointStore, load
from nvlm_train.engine.manifest import Manifest, record_file
from nvlm_train.engine.safe_unpickle import closed_pickles, read_index
from nvlm_train.errors import CheckpointError


class Trap:
    """Unpickled without a guard, it makes a folder."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path) -> Path:
    return tmp_path / "code-was-run"


@pytest.fixture
def saved(tmp_path) -> Path:
    store = CheckpointStore(tmp_path / "checkpoints" / "pretrain", keep_last=1)
    store.save(TableEngine(1), facts(), 100)
    return store.latest()


def approve(folder: Path) -> None:
    """Give a tampered folder a manifest that fits it."""
    manifest = Manifest.read(folder)
    (folder / "manifest.json").unlink()
    replace(manifest, files={name: record_file(folder / name) for name in manifest.files}).write(folder)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, TableEngine(2), FINGERPRINT)
    return str(caught.value)


def set_trap_in_object(folder: Path, mark: Path) -> None:
    """Put a trap where the stored object `optimizer.notes` lay: appended to the shard file, the index pointed to it."""
    index = pickle.loads((folder / ".metadata").read_bytes())
    key = next(key for key in index.storage_data if key.fqn.startswith("optimizer.notes"))
    buffer = io.BytesIO()
    torch.save([Trap(mark)], buffer)
    shard = folder / index.storage_data[key].relative_path
    offset = shard.stat().st_size
    shard.write_bytes(shard.read_bytes() + buffer.getvalue())
    index.storage_data[key] = replace(index.storage_data[key], offset=offset, length=len(buffer.getvalue()))
    (folder / ".metadata").write_bytes(pickle.dumps(index))


def test_the_traps_do_work_where_nothing_guards(mark):
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists()


def test_code_in_the_index_is_refused_by_name(saved, mark):
    (saved / ".metadata").write_bytes(pickle.dumps(Trap(mark)))
    approve(saved)
    message = refusal(saved)
    assert not mark.exists()
    assert "mkdir" in message and "nothing was run" in message


def test_code_hidden_in_a_working_index_is_refused(saved, mark):
    index = pickle.loads((saved / ".metadata").read_bytes())
    index.planner_data = Trap(mark)
    (saved / ".metadata").write_bytes(pickle.dumps(index))
    approve(saved)
    assert "mkdir" in refusal(saved) and not mark.exists()


def test_the_library_itself_reads_the_index_through_the_guard(saved, mark):
    (saved / ".metadata").write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(CheckpointError, match="mkdir"), closed_pickles():
        filesystem.FileSystemReader(saved).read_metadata()
    assert not mark.exists()


@pytest.mark.parametrize("force", ["0", "1"])
def test_code_in_the_common_file_is_refused_even_where_the_environment_asks_for_it(saved, mark, force, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    torch.save({"optimizer": Trap(mark)}, saved / "common.pt")
    approve(saved)
    assert "nothing was run" in refusal(saved) and not mark.exists()


def test_code_in_a_stored_object_is_refused(saved, mark):
    set_trap_in_object(saved, mark)
    approve(saved)
    assert "nothing was run" in refusal(saved) and not mark.exists()


def test_a_rank_local_index_is_no_back_door(saved, mark):
    """torch looks for `__0.metadata` when the index is missing."""
    (saved / ".metadata").rename(saved / "__0.metadata")
    manifest = Manifest.read(saved)
    (saved / "manifest.json").unlink()
    (saved / "__0.metadata").write_bytes(pickle.dumps(Trap(mark)))
    replace(manifest, files={path.name: record_file(path) for path in saved.iterdir()}).write(saved)
    assert ".metadata" in refusal(saved) and not mark.exists()


@pytest.mark.parametrize("name", ["../outside.distcp", "/etc/hostname", "..", ""])
def test_an_index_that_points_outside_its_folder_is_refused(saved, name):
    index = pickle.loads((saved / ".metadata").read_bytes())
    index.storage_data = {key: replace(place, relative_path=name) for key, place in index.storage_data.items()}
    (saved / ".metadata").write_bytes(pickle.dumps(index))
    approve(saved)
    assert "outside" in refusal(saved)


@pytest.mark.parametrize("module, name", [
    ("builtins", "eval"), ("builtins", "getattr"), ("builtins", "__import__"), ("os", "system"), ("posix", "system"),
    ("torch", "load"), ("torch.serialization", "load"), ("torch", "hub.load"),
    ("torch.distributed.checkpoint.metadata", "os.system"),
    ("torch.distributed.checkpoint.filesystem", "pickle.loads"), ("functools", "partial"), ("operator", "attrgetter"),
    ("torch.distributed.checkpoint.metadata", "Metadata.__init__"), ("collections", "OrderedDict"), ("pathlib", "PosixPath"),
])
def test_no_other_name_is_let_in(module, name):
    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    stream = b"\x80\x04" + text(module) + text(name) + b"\x93."     # protocol 4, STACK_GLOBAL, STOP
    with pytest.raises(CheckpointError, match="refused"):
        read_index(io.BytesIO(stream))
    old = f"\x80\x02c{module}\n{name}\n.".encode("latin-1")         # protocol 2, GLOBAL, STOP
    with pytest.raises(CheckpointError, match="refused"):
        read_index(io.BytesIO(old))


@pytest.mark.parametrize("data", [
    b"", b"garbage", pickle.dumps(Metadata({}))[:-5], pickle.dumps({"a": 1}), pickle.dumps(Metadata({})),
])
def test_what_is_no_index_is_one_line_of_error(data):
    with pytest.raises(CheckpointError, match="index"):
        read_index(io.BytesIO(data))


def test_a_good_index_reads_the_same_as_without_the_guard(saved):
    data = (saved / ".metadata").read_bytes()
    guarded, plain = read_index(io.BytesIO(data)), pickle.loads(data)
    assert guarded == plain
    assert MetadataIndex("connector.weight", torch.Size([0, 0])) in guarded.storage_data


def test_the_guards_are_lifted_again_also_after_a_failure():
    before = torch.load, filesystem.pickle, set(torch.serialization.get_safe_globals())
    with pytest.raises(ZeroDivisionError), closed_pickles():
        assert torch.load is not before[0] and torch.serialization.get_safe_globals() == []
        raise ZeroDivisionError
    assert (torch.load, filesystem.pickle, set(torch.serialization.get_safe_globals())) == before
    assert before[1] is pickle
