"""The same run on every layout: loss and gradient norm of every step agree with one process, in both stages.

What may differ is the order of float32 sums. A loss is a mean over some hundred token losses, each the end of a few dozen matrix
products of up to a few hundred terms; rounding of single terms is 2^-24 = 6e-8 and mostly cancels in the mean, so losses from equal
weights agree to LOSS_FIRST = 1e-6. Afterwards AdamW divides each gradient by its own size, which lifts the rounding of the smallest
gradients into the weights; the largest difference seen over 20 steps of both stages and all layouts is 2e-7 in the loss and 3e-5 in
the gradient norm, which is far below what any real slip gives (a partial gradient, a wrong normaliser, a shifted position: 1e-3 and
more). The bounds are ten times the largest seen.
"""

import functools
import json
import tempfile
from pathlib import Path

import pytest

from tests.engine.launching import launch

STEPS, LOSS_FIRST, LOSS, NORM = 20, 1e-6, 2e-6, 3e-4
SCRIPT = Path(__file__).parent / "train_ranks.py"
EVERYTHING = "train.trainable=[vision,connector,language]"

LAYOUTS = {
    "TP2": (2, "layout.tensor=2"),
    "TP2 + sequence": (2, "layout.tensor=2 layout.sequence=true"),
    "PP2": (2, "layout.pipeline=2"),
    "PP2 uneven (1 + 3 layers)": (2, "layout.pipeline=2 layout.first_stage_layers=1"),
    "TP2 x PP2": (4, "layout.tensor=2 layout.pipeline=2"),
    "DP2": (2, ""),
    "unpacked": (1, "data.packing=false"),
}
MORE = {
    "TP2 x PP2 + sequence": (4, "layout.tensor=2 layout.pipeline=2 layout.sequence=true"),
    "TP2 x DP2": (4, "layout.tensor=2"),
    "PP2 x DP2": (4, "layout.pipeline=2"),
    "PP2 interleaved": (2, "layout.pipeline=2 layout.virtual=2"),
    "PP2 x DP2 unpacked": (4, "layout.pipeline=2 data.packing=false"),
    "recompute full": (1, "model.recompute=full"),
    "recompute selective": (1, "model.recompute=selective"),
    "TP2 recompute full": (2, "layout.tensor=2 layout.sequence=true model.recompute=full"),
}
WIDE_QK_NORM = {name: LAYOUTS[name] for name in ("TP2 + sequence", "PP2")}


@functools.cache
def curves(recipe: str, ranks: int, overrides: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "curves.json"
        done = launch(SCRIPT, ranks, out, recipe, STEPS, *overrides.split(), folder=Path(folder), timeout=300)
        assert done.returncode == 0, done.output[-4000:]
        return json.loads(out.read_text())


def differences(reference: list[dict], other: list[dict], field: str) -> list[float]:
    return [abs(a[field] - b[field]) / abs(a[field]) for a, b in zip(reference, other, strict=True)]


def check(recipe: str, name: str, layout: tuple[int, str], fixed: str, table: list) -> None:
    ranks, overrides = layout
    reference, other = curves(recipe, 1, fixed), curves(recipe, ranks, f"{overrides} {fixed}")
    assert set(reference) == set(other) == {"pretrain", "sft"}
    for stage, expected in reference.items():
        assert len(expected) == STEPS
        assert len({round(step["loss"], 6) for step in expected}) > STEPS // 2, "a curve that does not move proves nothing"
        loss, norm = (differences(expected, other[stage], field) for field in ("loss", "grad_norm"))
        table.append((recipe, name, stage, STEPS, max(loss), max(norm)))
        assert [s["tokens"] for s in expected] == [s["tokens"] for s in other[stage]]
        assert loss[0] < LOSS_FIRST, f"{stage}, step 1: loss off by {loss[0]:.1e}"
        assert max(loss) < LOSS and max(norm) < NORM, f"{stage}: loss off by {max(loss):.1e}, norm by {max(norm):.1e}"


@pytest.mark.distributed
@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name, table):
    check("nvlm_d_tiny", name, LAYOUTS[name], "", table)


@pytest.mark.distributed
@pytest.mark.full
@pytest.mark.parametrize("name", MORE)
def test_more_layouts(name, table):
    check("nvlm_d_tiny", name, MORE[name], "", table)


@pytest.mark.distributed
@pytest.mark.parametrize("name", WIDE_QK_NORM)
def test_unfrozen_6b_style_encoder(name, table):
    """Five heads over two ranks (one dummy) and QK norm over the full width, with gradients through all of it."""
    check("nvlm_d_tiny_6b", name, WIDE_QK_NORM[name], EVERYTHING, table)
