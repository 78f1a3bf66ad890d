"""The slow rank is named: by arithmetic here, on two real ranks in `test_a_rank_that_is_slowed_down_is_named`."""

import json
from pathlib import Path

import pytest

from nvlm_train.training.recent import WINDOW
from nvlm_train.training.stragglers import Stragglers
from tests.engine.launching import launch


def test_alone_nobody_is_slow():
    assert Stragglers(["here"]).add([3.0], 4.0) == {"slowest_rank": None, "slowest_host": None, "straggler_share": 0.0}


def test_the_slowest_is_compared_with_the_median_over_a_window():
    slow = Stragglers(["a", "a", "b", "b"])
    assert slow.add([9.0, 1.0, 1.0, 1.0], 10.0)["slowest_rank"] == 0
    # The first step warms up and is forgotten.
    assert slow.add([1.0, 1.0, 3.0, 1.0], 4.0) == {"slowest_rank": 2, "slowest_host": "b", "straggler_share": 0.5}
    assert slow.add([1.0, 1.0, 1.0, 1.0], 4.0) == {"slowest_rank": 2, "slowest_host": "b", "straggler_share": 0.25}
    for _ in range(WINDOW):
        last = slow.add([1.0, 2.0, 1.0, 1.0], 4.0)
    assert last == {"slowest_rank": 1, "slowest_host": "a", "straggler_share": 0.25}


def test_of_two_the_slower_is_compared_with_the_faster():
    assert Stragglers(["a", "b"]).add([1.0, 2.0], 4.0)["straggler_share"] == 0.25


@pytest.mark.full
@pytest.mark.distributed
def test_a_rank_that_is_slowed_down_is_named(tmp_path):
    """Rank 1 sleeps 0.2 s in each forward of a model whose step takes less; both train 5 steps under the real command."""
    done = launch(Path(__file__).with_name("slow_rank.py"), 2, tmp_path / "run", folder=tmp_path, timeout=240)
    assert (done.returncode, done.survivors) == (0, []), done.output[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["slowest_rank"] for row in rows[1:]] == [1] * 4
    last = rows[-1]
    slept = 4 * 0.2 / sum(row["step_s"] for row in rows[1:])
    assert last["straggler_share"] > slept / 2      # its row may be the shorter one, and save it part of what it slept
    assert last["slowest_host"] and last["data_wait_share"] < 1
    assert "rank 1 (" in done.output and "slow, costs" in done.output
