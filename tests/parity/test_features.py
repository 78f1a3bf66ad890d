"""Reading what the encoder sees changes nothing: loss and gradient norm of every step agree with the run that computes it.

What may differ is rounding: a tile is encoded beside other tiles, or on another number of ranks, and a matrix product of another shape
may add its terms in another order. That is the difference between two layouts, so the bounds are those of `test_layouts`, and so is the
learning rate. On one process the products of these sizes are the same whatever the batch, and the curves are equal to the last bit.
"""

import pytest

from nvlm_train.training.logs import read_rows
from tests.engine.launching import launch
from tests.parity.test_layouts import LOSS, NORM, OPEN, SCRIPT, differences
from tests.parity.train_ranks import RATES

STEPS = 12
# X and H with open gates: while they are closed a picture changes nothing.
RECIPES = {"nvlm_d_tiny": (), "nvlm_x_tiny": (OPEN,), "nvlm_h_tiny": (OPEN,)}
LAYOUTS = {"one process": (1, ()), "TP2": (2, ("layout.tensor=2",)), "PP2": (2, ("layout.pipeline=2",)),
           "TP2 + sequence": (2, ("layout.tensor=2", "layout.sequence=true"))}
CASES = [("nvlm_d_tiny", "one process"), ("nvlm_x_tiny", "one process"), ("nvlm_h_tiny", "one process"), ("nvlm_h_tiny", "TP2"),
         ("nvlm_h_tiny", "PP2")]


@pytest.mark.distributed
@pytest.mark.parametrize(("recipe", "layout"), CASES)
def test_cached_features_change_nothing(recipe, layout, tmp_path, monkeypatch):
    monkeypatch.setenv("NVLM_CACHE", str(tmp_path / "data"))
    ranks, overrides = LAYOUTS[layout]
    done = launch(SCRIPT.with_name("cached_ranks.py"), ranks, tmp_path, f"recipe={recipe}", "stage=pretrain", f"train.steps={STEPS}", *RATES,
                  "run.eval_batches=1", "run.examples=0", "run.device=cpu", *RECIPES[recipe], *overrides, folder=tmp_path, timeout=300)
    assert done.returncode == 0, done.output[-4000:]
    cached, computed = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("cached", "computed"))
    assert [row["step"] for row in cached] == list(range(1, STEPS + 1))
    assert len({round(row["loss"], 6) for row in computed}) > STEPS // 2, "a curve that does not move proves nothing"
    loss, norm = (max(differences(computed, cached, field)) for field in ("loss", "grad_norm"))
    assert loss < LOSS and norm < NORM, f"loss off by {loss:.1e}, gradient norm by {norm:.1e}"
    if ranks == 1:
        assert loss == norm == 0
    assert (tmp_path / "cached" / "samples.jsonl").read_bytes() == (tmp_path / "computed" / "samples.jsonl").read_bytes()
    validated = [read_rows(tmp_path / name / "eval.jsonl")[-1]["loss"] for name in ("cached", "computed")]
    assert validated[0] == pytest.approx(validated[1], rel=LOSS)
    for name in ("tokens", "tiles", "memory_tokens"):
        assert [row[name] for row in cached] == [row[name] for row in computed]
    assert all(row["tiles"] > 0 and row["tflops"]["vit"] == 0 and row["tflops"]["connector"] > 0 for row in cached)
    assert all(row["tflops"]["vit"] > 0 for row in computed)
