"""`benchmarks/importing.py` runs, at a size that says nothing about speed; an import takes a fraction of the model's size."""

import json

import pytest

from benchmarks.importing import main

SIZES = ("model.language.hidden=1024", "model.language.ffn=4096", "model.language.heads=16", "model.language.head_dim=64",
         "model.language.vocab=2000", "model.language.layers=24")


@pytest.mark.full
def test_memory_stays_far_below_the_model(tmp_path):
    """24 layers of 30 MB. Python and torch alone take up to 150 MB, so half of the model leaves an import some layers."""
    out = tmp_path / "result.json"
    assert main(["--work", str(tmp_path), "--shard-gb", "0.1", "--rounds", "1", "--json", str(out), *SIZES]) == 0
    result = json.loads(out.read_text())
    layer = 2 * (2 * 1024**2 + 2 * 4 * 64 * 1024 + 3 * 1024 * 4096 + 1024 + 512 + 2048)
    assert result["largest_layer"] == layer and result["bytes"] == 24 * layer + 2 * (2 * 2000 * 1024 + 1024)
    assert 0 < result["peak_anonymous"] < result["bytes"] / 2
    assert result["copy"]["cpu_seconds"] > 0 < result["import"]["cpu_seconds"]
    assert list(tmp_path.iterdir()) == [out], "everything is deleted again"
