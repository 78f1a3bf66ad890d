"""The same run on every layout: loss and gradient norms of every step agree with one process, in both stages, for D, X and H.

What may differ is the order of float32 sums. A loss is a mean over some hundred token losses, each the end of a few dozen matrix
products of up to a few hundred terms; rounding of single terms is 2^-24 = 6e-8 and mostly cancels in the mean, so losses from equal
weights agree to LOSS_FIRST = 1e-6. Afterwards AdamW divides each gradient by its own size, which lifts the rounding of the smallest
gradients into the weights; the largest difference seen over 20 steps of both stages and all layouts is 2e-7 in the loss and 3e-5 in
the gradient norm, which is far below what any real slip gives (a partial gradient, a wrong normaliser, a shifted position: 1e-3 and
more). The bounds are ten times the largest seen.

The norm of a part (connector, cross-attention, gates) is compared in units of the part's largest norm over the curve: a single
gate's gradient comes arbitrarily near to zero, where a ratio says nothing.
"""

import functools
import json
import tempfile
from pathlib import Path

import pytest

from tests.engine.launching import launch

STEPS, LOSS_FIRST = 20, 1e-6
LOSS, NORM = 2e-6, 3e-4
SCRIPT = Path(__file__).parent / "train_ranks.py"
ODD = "train.trainable=[vision,connector,language] model.language.vocab=1025"

# In the core suite, each kind of splitting once (of pipelines with X); `make test-all` adds MORE.
LAYOUTS = {
    "TP2 + sequence": (2, "layout.tensor=2 layout.sequence=true"),
    "DP2": (2, ""),
    "unpacked": (1, "data.packing=false"),
}
MORE = {
    "TP2 x PP2": (4, "layout.tensor=2 layout.pipeline=2"),
    "TP2": (2, "layout.tensor=2"),
    "PP2": (2, "layout.pipeline=2"),
    "PP2 uneven (1 + 3 layers)": (2, "layout.pipeline=2 layout.first_stage_layers=1"),
    "TP2 x PP2 + sequence": (4, "layout.tensor=2 layout.pipeline=2 layout.sequence=true"),
    "TP2 x DP2": (4, "layout.tensor=2"),
    "PP2 x DP2": (4, "layout.pipeline=2"),
    "PP2 interleaved": (2, "layout.pipeline=2 layout.virtual=2"),
    "PP2 x DP2 unpacked": (4, "layout.pipeline=2 data.packing=false"),
    "recompute full": (1, "model.recompute=full"),
    "recompute selective": (1, "model.recompute=selective"),
    "TP2 recompute full": (2, "layout.tensor=2 layout.sequence=true model.recompute=full"),
}
CROSS = {name: MORE[name] for name in ("TP2 x PP2 + sequence",)}
WIDE_QK_NORM = {name: (LAYOUTS | MORE)[name] for name in ("TP2 + sequence", "PP2")}
# X and H train in one job. At zero, where gates start, the connector's gradient is exactly zero: they are opened.
BOTH, OPEN = "nvlm_x_tiny,nvlm_h_tiny", "model.cross_attention.gate_init=0.3"


@functools.cache
def curves(recipes: str, ranks: int, overrides: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "curves.json"
        done = launch(SCRIPT, ranks, out, recipes, STEPS, *overrides.split(), folder=Path(folder), timeout=900)
        assert done.returncode == 0, done.output[-4000:]
        return json.loads(out.read_text())


def differences(reference: list[dict], other: list[dict], field: str) -> list[float]:
    """Step by step; relative to the step's own value, for a part to its largest."""
    largest = max(step[field] for step in reference)
    return [abs(a[field] - b[field]) / (a[field] if field in ("loss", "grad_norm") else largest)
            for a, b in zip(reference, other, strict=True)]


def check(recipes: str, name: str, layout: tuple[int, str], fixed: str, record) -> None:
    """Compare every recipe's every stage with one process; `record` takes a row of the table for each."""
    ranks, overrides = layout
    reference, other = curves(recipes, 1, fixed), curves(recipes, ranks, f"{overrides} {fixed}")
    assert list(reference) == list(other) == recipes.split(",")
    rows = [(recipe, stage) for recipe in reference for stage in ("pretrain", "sft")]
    found = {}
    for recipe, stage in rows:
        expected, got = reference[recipe][stage], other[recipe][stage]
        assert len(expected) == STEPS
        assert len({round(step["loss"], 6) for step in expected}) > STEPS // 2, "a curve that does not move proves nothing"
        assert [s["tokens"] for s in expected] == [s["tokens"] for s in got]
        fields = [field for field in expected[0] if field not in ("rows", "tokens")]
        assert ("gates" in fields) == (recipe[:6] != "nvlm_d") and all(step[field] > 0 for step in expected for field in fields)
        found[recipe, stage] = {field: differences(expected, got, field) for field in fields}
        record("parity", {"recipe": recipe, "layout": name, "stage": stage, "steps": STEPS}
               | {field: max(values) for field, values in found[recipe, stage].items()})
    for (recipe, stage), by_field in found.items():
        where = f"{recipe} {stage}"
        assert by_field["loss"][0] < LOSS_FIRST, f"{where}, step 1: loss off by {by_field['loss'][0]:.1e}"
        for field, values in by_field.items():
            bound = LOSS if field == "loss" else NORM
            assert max(values) < bound, f"{where}: {field} off by {max(values):.1e}, the bound is {bound:.0e}"


@pytest.mark.distributed
@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name, record_property):
    check("nvlm_d_tiny", name, LAYOUTS[name], "", record_property)


@pytest.mark.distributed
@pytest.mark.parametrize("name", CROSS)
def test_cross_attention(name, record_property):
    check("nvlm_x_tiny", name, CROSS[name], OPEN, record_property)


@pytest.mark.distributed
@pytest.mark.full
@pytest.mark.parametrize("name", MORE)
def test_more_layouts(name, record_property):
    check("nvlm_d_tiny", name, MORE[name], "", record_property)


@pytest.mark.distributed
@pytest.mark.full
@pytest.mark.parametrize("name", LAYOUTS | MORE)
def test_cross_attention_on_more_layouts(name, record_property):
    check(BOTH, name, (LAYOUTS | MORE)[name], OPEN, record_property)


@pytest.mark.distributed
@pytest.mark.full
@pytest.mark.parametrize("name", WIDE_QK_NORM)
def test_unfrozen_6b_style_encoder(name, record_property):
    """Five heads over two ranks (one dummy) and QK norm over the full width, with gradients through all of it; and a vocabulary that
    needs a spare row."""
    check("nvlm_d_tiny_6b", name, WIDE_QK_NORM[name], ODD, record_property)
