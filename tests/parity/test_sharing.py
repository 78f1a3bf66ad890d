"""A frozen encoder that is whole on each rank, its tiles shared out: trains as one that is split, and as one alone.

The bounds are those of `test_layouts`, and their reasons: only the order of float32 sums differs.
"""

import json
from pathlib import Path

import pytest

from nvlm_train.config.compose import compose
from nvlm_train.model.parameters import rank_parameters
from tests.engine.launching import launch
from tests.parity.test_layouts import LOSS, NORM

SCRIPT = Path(__file__).with_name("sharing_ranks.py")


def close(steps: list[list[float]], others: list[list[float]]) -> bool:
    assert len(steps) == len(others) == 2
    return all(a == pytest.approx(b, rel=bound) for left, right in zip(steps, others, strict=True)
               for a, b, bound in zip(left, right, (LOSS, NORM), strict=True))


def check(architectures: str, folder: Path) -> None:
    done = launch(SCRIPT, 2, folder / "found.json", architectures, folder=folder, timeout=400)
    assert done.returncode == 0, done.output[-4000:]
    found = json.loads((folder / "found.json").read_text())
    assert list(found) == architectures.split(",")
    for name, layouts in found.items():
        split, shared, whole = (layouts[key] for key in ("split", "shared", "whole"))
        assert shared["elements"] == whole["elements"] > split["elements"], name
        assert close(shared["first"], whole["first"]) and close(shared["later"], whole["later"]), name
        assert close(shared["first"], split["first"]) and not close(shared["first"], shared["later"]), name
        assert shared["logits"] == pytest.approx(whole["logits"], rel=1e-4), name
        # Three calls of one, two and three tiles, on two ranks: six different features, the same on both.
        assert shared["seen"][0] == shared["seen"][1] and len(set(shared["seen"][0])) == 3 < len(shared["seen"][0]) == 6, name
        assert shared["seen"][0] == pytest.approx(whole["seen"][0], rel=1e-6), name
        assert len({layout[key] for layout in layouts.values() for key in layout if key.startswith("fingerprint")}) == 1, name
        assert close(split["resumed"], shared["later"]) and close(shared["resumed"], split["later"]), name
        assert split["contents"] == shared["contents"], name


@pytest.mark.distributed
@pytest.mark.slow
def test_shared_tiles_train_alike(tmp_path):
    check("nvlm_d", tmp_path)


@pytest.mark.distributed
@pytest.mark.full
def test_shared_tiles_of_the_memory(tmp_path):
    check("nvlm_x,nvlm_h", tmp_path)


def test_no_head_is_a_dummy_one():
    """The 6B encoder on 8 ranks: 32 heads of 128 would be held by all, 7 of them dummies."""
    words = ["recipe=nvlm_d_72b", "stage=pretrain"]
    split, shared = (rank_parameters(compose([*words, f"layout.share_tiles={share}"])[0], 0) for share in ("false", "true"))
    of_vision = [sum(p.elements for p in chunk if p.component == "vision") for chunk in (split[0], shared[0])]
    assert of_vision[1] == pytest.approx(5.536e9, rel=1e-3) and 7 < of_vision[1] / of_vision[0] < 8
    assert not any(p.padding for p in shared[0] if p.component == "vision")
