"""Reading what the encoder sees changes nothing on several ranks: loss and gradient norm of every step agree with computing it.

What may differ is rounding: a tile is encoded beside other tiles and perhaps on another number of ranks, and a matrix product of
another shape may add its terms in another order. That is the difference between two layouts, so the bounds are those of
`test_layouts`, and so is the learning rate. (On one process: tests/training/test_cached_features.py.)
"""

import pytest

from nvlm_train.training.logs import read_rows
from tests.engine.launching import launch
from tests.parity.test_layouts import LOSS, NORM, OPEN, SCRIPT, differences
from tests.parity.train_ranks import RATES

STEPS = 8
LAYOUTS = ("layout.tensor=2 layout.sequence=true", "layout.pipeline=2", "layout.tensor=1")      # the last: DP 2


@pytest.mark.full
@pytest.mark.distributed
def test_cached_features_change_nothing(tmp_path, monkeypatch):
    """Cached under the first layout, read under each. NVLM-H has tiles in the sequence and in the memory."""
    monkeypatch.setenv("NVLM_CACHE", str(tmp_path / "data"))
    done = launch(SCRIPT.with_name("cached_ranks.py"), 2, tmp_path, "/".join(LAYOUTS), "recipe=nvlm_h_tiny", "stage=pretrain",
                  *RATES, f"train.steps={STEPS}", "run.eval_batches=1", "run.examples=0", "run.device=cpu", OPEN,
                  folder=tmp_path, timeout=400)
    assert done.returncode == 0, done.output[-4000:]
    assert len(list((tmp_path / "data").glob("*/*/*.features-*"))) == 2
    for number, layout in enumerate(LAYOUTS):
        cached, computed = (tmp_path / f"{name}-{number}" for name in ("cached", "computed"))
        found, expected = (read_rows(folder / "metrics.jsonl") for folder in (cached, computed))
        assert [row["step"] for row in found] == list(range(1, STEPS + 1))
        assert len({round(row["loss"], 6) for row in expected}) > STEPS // 2, "a curve that does not move proves nothing"
        loss, norm = (max(differences(expected, found, field)) for field in ("loss", "grad_norm"))
        assert loss < LOSS and norm < NORM, f"{layout}: loss off by {loss:.1e}, gradient norm by {norm:.1e}"
        assert (cached / "samples.jsonl").read_bytes() == (computed / "samples.jsonl").read_bytes()
        validated = [read_rows(folder / "eval.jsonl")[-1]["loss"] for folder in (cached, computed)]
        assert validated[0] == pytest.approx(validated[1], rel=LOSS)
        assert [(row["tokens"], row["tiles"], row["memory_tokens"]) for row in found] == [
            (row["tokens"], row["tiles"], row["memory_tokens"]) for row in expected]
        assert all(row["tiles"] > 0 and row["tflops"]["vit"] == 0 for row in found)
        assert all(row["tflops"]["vit"] > 0 for row in expected)
