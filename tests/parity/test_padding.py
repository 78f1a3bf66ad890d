"""A vocabulary of 1,025 rows and five vision heads on two ranks: spare rows and dummy heads change nothing, and stay with the layout.

The bounds are those of `test_layouts`, and their reasons: only the order of float32 sums differs. A spare row that took part in the
softmax would change a loss of 7 by about 1 / 1,026.
"""

import json
from pathlib import Path

import pytest

from tests.engine.launching import launch
from tests.parity.test_layouts import LOSS, NORM

pytestmark = [pytest.mark.distributed, pytest.mark.full]
SCRIPT = Path(__file__).parent / "padded_ranks.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("padded")
    done = launch(SCRIPT, 2, folder / "found.json", folder=folder, timeout=300)
    assert done.returncode == 0, done.output[-4000:]
    return json.loads((folder / "found.json").read_text())


def same(steps: list[list[float]], others: list[list[float]]) -> bool:
    assert len(steps) == len(others) == 2
    return all(a == pytest.approx(b, rel=bound) for left, right in zip(steps, others, strict=True)
               for a, b, bound in zip(left, right, (LOSS, NORM), strict=True))


def test_split_and_whole_train_alike(found):
    assert (found["split"]["rows"], found["whole"]["rows"]) == (1026, 1025)
    assert same(found["split"]["first"], found["whole"]["first"])
    assert same(found["tied split"], found["tied whole"])
    assert not same(found["tied split"], found["split"]["first"]), "another model: the comparison would see a slip"


def test_logits_are_those_of_rows_that_exist(found):
    for name in ("split", "whole"):
        assert found[name]["logits"] == [352, 1025] and found[name]["finite"]


def test_spare_rows_stay_zero_and_so_do_their_moments(found):
    """Two tables, each with its master copy and two moments, on the one rank that has spare rows."""
    assert found["split"]["padding"] == [0.0] * 8 and found["whole"]["padding"] == []


@pytest.mark.parametrize("name", ["split", "whole"])
def test_a_checkpoint_goes_on_under_the_other_padding(found, name):
    """Weights, master weights and moments: the course is that of the run that was never interrupted."""
    assert same(found[name]["resumed"], found[name]["later"])
    assert not same(found[name]["resumed"], found[name]["first"])


@pytest.mark.parametrize("name", ["split", "whole"])
def test_a_checkpoint_lists_real_shapes(found, name):
    shapes = found[name]["contents"]
    for prefix in ("", "optimizer.state.exp_avg."):
        assert shapes[f"{prefix}language.embedding.weight"] == shapes[f"{prefix}language.output_layer.weight"] == [1025, 128]
        assert shapes[f"{prefix}vision.layers.0.attention.linear_qkv.weight"] == [3 * 160, 160]
        assert shapes[f"{prefix}vision.layers.0.attention.q_norm.weight"] == [160]
