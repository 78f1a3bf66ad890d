"""Saves and loads by two processes: what fails on one fails on both, and a killed one costs nothing but the save under way."""

import json
from pathlib import Path

import pytest
from checkpoint_toys import TableEngine, facts
from launching import launch

from nvlm_train.engine.checkpoint import CheckpointStore, resolve

pytestmark = pytest.mark.distributed
SCRIPT = Path(__file__).with_name("checkpoint_ranks.py")


@pytest.fixture(scope="module")
def soft(tmp_path_factory) -> list[dict]:
    """What the two ranks of one launch said of all the faults one can go on after (starting processes takes the longest)."""
    folder = tmp_path_factory.mktemp("soft")
    run = launch(SCRIPT, 2, folder / "checkpoints", "soft", folder=folder)
    assert run.returncode == 0 and not run.survivors, run.output
    return [json.loads((folder / f"checkpoints-{rank}.json").read_text()) for rank in range(2)]


def test_two_ranks_share_the_writing_and_read_it_back(soft):
    for said in soft:
        assert said["right"] and said["steps"] == [1]
        assert len(said["sizes"]) == 2 and max(said["sizes"]) < 1.1 * min(said["sizes"])


def test_a_write_that_fails_on_one_rank_fails_on_both_and_only_the_partial_goes(soft):
    for said in soft:
        message, left = said["save_with_a_limit"]
        assert "saving step 2 failed on rank 1" in message and "File too large" in message
        assert "needs about 2.2 MiB" in message and "newest good checkpoint is step-00000001" in message
        assert left == ["step-00000001"]


def test_damage_found_by_one_rank_stops_both(soft):
    for said in soft:
        assert "__1_0.distcp was damaged or replaced" in said["load_damaged"][0]


def test_a_rank_killed_while_saving_costs_only_that_save_and_leaves_no_process(tmp_path):
    run = launch(SCRIPT, 2, tmp_path / "c", "kill", folder=tmp_path)
    assert run.returncode != 0 and not run.survivors, run.output
    store = CheckpointStore(tmp_path / "c", keep_last=3)
    (partial,) = (path for path in store.root.iterdir() if path.name.startswith(".partial-step-00000002"))
    assert len(list(partial.glob("*.distcp"))) == 2      # both had written everything, and still it does not count
    assert store.steps() == [1] and resolve(store.root).name == "step-00000001"
    store.save(TableEngine(1), facts(), 3)
    assert store.steps() == [1, 3] and not partial.exists()
