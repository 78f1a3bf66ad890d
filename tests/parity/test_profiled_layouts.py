"""`run.profile` on several ranks: the same losses as without, a trace of each rank, and times that add up on each."""

import json
from pathlib import Path

import pytest

from nvlm_train.training.logs import read_rows
from tests.engine.launching import ROOT, launch

pytestmark = [pytest.mark.full, pytest.mark.distributed]

WORDS = ("stage=sft", "train.global_batch=4", "train.steps=3", "train.warmup_steps=1", "run.eval_batches=1", "run.examples=0",
         "run.device=cpu", "run.hang_s=60", "run.timeout_s=100")


def trained(folder: Path, *words: str) -> list[float]:
    done = launch(ROOT / "nvlm_train" / "__main__.py", 2, "train", *WORDS, f"run.dir={folder}", *words, folder=folder.parent,
                  timeout=240)
    assert done.returncode == 0 and not done.survivors, done.output[-4000:]
    return [row["loss"] for row in read_rows(folder / "metrics.jsonl")]


@pytest.mark.parametrize("layout", [
    ("recipe=nvlm_d_tiny", "layout.tensor=2", "layout.sequence=true"),
    ("recipe=nvlm_x_tiny", "layout.pipeline=2", "layout.virtual=2", "model.language.layers=4", "model.recompute=full"),
    ("recipe=nvlm_x_tiny",)], ids=["tensor", "virtual_pipeline", "data"])
def test_two_ranks(layout, tmp_path):
    losses = trained(tmp_path / "plain", *layout)
    assert trained(tmp_path / "profiled", *layout, "profile=2-3") == losses and len(losses) == 3
    folder = tmp_path / "profiled/profile/sft"
    assert sorted(path.name for path in folder.iterdir()) == [
        "profile.html", "summary.json", "trace-rank0.json.gz", "trace-rank1.json.gz"]
    told = json.loads((folder / "summary.json").read_text())
    assert told["ranks"] == 2 and told["notes"] == [] and "unattributed" not in told["components"]
    assert sum(part["share"] for part in told["components"].values()) == pytest.approx(1, rel=1e-9)
    assert all(row["communication"] > 0 and row["optimizer"] > 0 for row in told["per_rank"])
    assert told["flops"] == sum(part["flops"] for part in told["components"].values()) > 0
    if "layout.pipeline=2" in layout:
        first, last = told["per_rank"]
        assert "vision" in first and "vision" not in last and "output" in last and "output" not in first
        assert "self_attention" in first and "recompute" in told["components"]["mlp"]["phases"]


def test_deepspeed(tmp_path):
    pytest.importorskip("deepspeed")
    words = ("recipe=nvlm_x_tiny", "engine=deepspeed", "engine.zero=3")
    losses = trained(tmp_path / "plain", *words)
    assert trained(tmp_path / "profiled", *words, "profile=2-3") == losses
    told = json.loads((tmp_path / "profiled/profile/sft/summary.json").read_text())
    assert told["notes"] == []
    assert {"vision", "self_attention", "mlp", "cross_attention", "output", "optimizer"} <= set(told["components"])
