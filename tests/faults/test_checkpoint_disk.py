"""Full and unwritable disks. A file system of a few megabytes is mounted where that is permitted; a limit on the size of a
file, which needs no permission, is set in tests/faults/test_checkpoint_ranks.py."""

import subprocess
from pathlib import Path

import pytest
from checkpoint_toys import FINGERPRINT, TableEngine, facts

from nvlm_train.engine.checkpoint import CheckpointStore, load
from nvlm_train.errors import TrainingError

ONE_MIB = {"language.embedding.weight": (1024, 128)}    # 0.5 MiB of weights and as much of moments


@pytest.fixture
def small_disk(tmp_path):
    """Makes file systems; called with tmpfs options."""
    mounted = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting a small file system is not permitted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_too_small_is_refused_before_anything_is_written_with_both_numbers(small_disk):
    store = CheckpointStore(small_disk("size=3m") / "checkpoints", keep_last=2)
    store.save(TableEngine(1, ONE_MIB), facts(), 100)
    store.save(TableEngine(2, ONE_MIB), facts(), 200)
    with pytest.raises(TrainingError, match=r"needs about 1\.1 MiB but .* has \d+\.\d KiB free.*keep_last"):
        store.save(TableEngine(3, ONE_MIB), facts(), 300)
    assert sorted(path.name for path in store.root.iterdir()) == ["step-00000100", "step-00000200"]


def test_a_disk_that_fills_up_while_saving_costs_only_the_partial(small_disk):
    """The file system runs out of files, which the check beforehand does not see."""
    store = CheckpointStore(small_disk("size=64m,nr_inodes=12") / "checkpoints", keep_last=2)    # one save: a folder and 5 files
    store.save(TableEngine(1, ONE_MIB), facts(), 100)
    with pytest.raises(TrainingError) as caught:
        store.save(TableEngine(2, ONE_MIB), facts(), 200)
    message = str(caught.value)
    assert "saving step 200" in message and "No space left on device" in message
    assert "needs about 1.1 MiB" in message and "MiB free" in message and "newest good checkpoint is step-00000100" in message
    assert [path.name for path in store.root.iterdir()] == ["step-00000100"]
    engine = TableEngine(9, ONE_MIB)
    load(store.latest(), engine, FINGERPRINT)
    assert engine.same_as(TableEngine(1, ONE_MIB))


def test_a_folder_that_cannot_be_written_is_found_before_step_0(tmp_path):
    (tmp_path / "checkpoints").touch()      # a file where the folder should be: fails for root too
    store = CheckpointStore(tmp_path / "checkpoints" / "pretrain", keep_last=1)
    with pytest.raises(TrainingError, match="cannot be written"):
        store.preflight(TableEngine())


def test_a_read_only_file_system_is_found_before_step_0(small_disk):
    store = CheckpointStore(small_disk("size=1m,ro") / "checkpoints", keep_last=1)
    with pytest.raises(TrainingError, match=r"cannot be written.*[Rr]ead-only"):
        store.preflight(TableEngine())


def test_the_check_leaves_nothing_behind_and_knows_the_free_space(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1)
    store.preflight(TableEngine(), needed=1 << 20)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TrainingError, match="TiB"):
        store.preflight(TableEngine(), needed=1 << 55)
    assert list(tmp_path.iterdir()) == []
