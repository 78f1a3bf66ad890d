"""Messages beside the computing change nothing, to the last bit, and nobody waits for who has other rows.

Of two replicas: a sum of two numbers has no order. Over more, buckets may be cut elsewhere and a ring adds in another order; so every
layout here has two. The gradient norm alone is a sum over shards, which lie otherwise where there are more buckets: it may round
otherwise (fp32 sums of squares, to 1e-5), so nothing is clipped here. That no replica is needed by another between steps shows in that one
of them answers alone.
"""

import json
from pathlib import Path

import pytest

from tests.engine.launching import launch

SCRIPT = Path(__file__).with_name("overlap_ranks.py")
MORE = {"TP2 + sequence": (4, "layout.tensor=2", "layout.sequence=true"), "PP2": (4, "layout.pipeline=2"),
        "PP2 interleaved": (4, "layout.pipeline=2", "layout.virtual=2"),
        "recomputed": (2, "model.recompute=full"), "TP2, tiles shared": (4, "layout.tensor=2", "layout.share_tiles=true")}


def check(folder: Path, cases: str, ranks: int, *words: str) -> dict:
    done = launch(SCRIPT, ranks, folder / "found.json", cases, *words, folder=folder, timeout=400)
    assert done.returncode == 0, done.output[-4000:]
    found = json.loads((folder / "found.json").read_text())
    assert list(found) == cases.split(",")
    for name, by_overlap in found.items():
        beside, after = by_overlap["true"], by_overlap["false"]
        for what in ("losses", "alone", "weights"):
            assert beside[what] == after[what], f"{name}: {what}"
        assert beside["later"] == beside["resumed"] == after["later"] == after["resumed"], f"{name}: a checkpoint under the other setting"
        assert beside["norms"] == pytest.approx(after["norms"], rel=1e-5)
        assert len(set(beside["losses"])) == len({image for image, _ in beside["alone"]}) == 5
        # The first step counts how often each weight gets a gradient; from then on all are sent before the last backward ends.
        assert beside["beside"] == [0, *[beside["groups"]] * 5] and after["beside"] == [0] * 6, name
    return found


@pytest.mark.distributed
@pytest.mark.slow
def test_two_replicas(tmp_path):
    by_overlap = check(tmp_path, "X", 2)["X"]
    assert by_overlap["true"]["groups"] > 10 and by_overlap["false"]["groups"] == 1


@pytest.mark.distributed
@pytest.mark.full
def test_all_architectures(tmp_path):
    check(tmp_path, "D,frozen X,H,tied", 2)


@pytest.mark.distributed
@pytest.mark.full
@pytest.mark.parametrize("name", MORE)
def test_more_layouts(name, tmp_path):
    check(tmp_path, "D,X", *MORE[name])
