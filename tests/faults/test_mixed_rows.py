"""No rank waits for another because its rows are of another kind, and the result is that of one process.

A rank without a single picture, a rank with nothing but pictures, empty ranks, text between pictures in the pipeline: frozen and
unfrozen, on all three architectures and Flamingo's. A hang ends at the time limit as a failure.
"""

import functools
import json
import tempfile
from pathlib import Path

import pytest

from tests.engine.launching import launch
from tests.faults.mixed_rows_ranks import CASES, STEPS

SCRIPT = Path(__file__).parent / "mixed_rows_ranks.py"
LAYOUTS = {"DP2": (2,)}
MORE = {"PP2 x DP2": (4, "pipeline=2"), "TP2 x PP2 + sequence": (4, "tensor=2", "pipeline=2", "sequence=true"),
        "TP2 x DP2": (4, "tensor=2"), "PP2 interleaved": (2, "pipeline=2", "virtual=2")}


@functools.cache
def run(ranks: int, *layout: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "reports.json"
        done = launch(SCRIPT, ranks, out, *layout, folder=Path(folder), timeout=300)
        assert done.returncode == 0, done.output[-4000:]
        assert not done.survivors
        return json.loads(out.read_text())


def check(layout: tuple) -> None:
    alone, together = run(1), run(*layout)
    assert set(alone) == set(together) and len(alone) == len(CASES) + 3
    for name, expected in alone.items():
        for step, (loss, norm), (other_loss, other_norm) in zip(STEPS, expected, together[name], strict=True):
            assert other_loss == pytest.approx(loss, rel=2e-6), f"{name}, {step}"
            assert other_norm == pytest.approx(norm, rel=3e-4, abs=1e-12), f"{name}, {step}"
        text_only = expected[list(STEPS).index("only text")][1]
        # A frozen language model learns nothing from text, unless its cross-attention has a feed-forward: that sees text too.
        assert (text_only == 0) == (name.endswith(", frozen") and not name.startswith("Flamingo")), name


@pytest.mark.distributed
@pytest.mark.parametrize("name", LAYOUTS)
def test_mixed_rows(name):
    check(LAYOUTS[name])


@pytest.mark.distributed
@pytest.mark.full
@pytest.mark.parametrize("name", MORE)
def test_mixed_rows_on_more_layouts(name):
    check(MORE[name])
