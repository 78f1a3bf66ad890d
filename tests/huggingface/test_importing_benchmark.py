"""`benchmarks/importing.py` runs, at a size that says nothing about speed; memory does not grow with the model."""

import json

import pytest

from benchmarks.importing import main

SIZES = ("model.language.hidden=1024", "model.language.ffn=4096", "model.language.heads=16", "model.language.head_dim=64",
         "model.language.vocab=2000")


def imported(tmp_path, layers):
    out = tmp_path / f"{layers}.json"
    assert main(["--work", str(tmp_path), "--language", "qwen2_7b", "--shard-gb", "0.1", "--rounds", "1", "--json", str(out),
                 f"model.language.layers={layers}", *SIZES]) == 0
    return json.loads(out.read_text())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path):
    """4 and 16 layers of 30 MB: some tens of megabytes of jitter in what Python and torch take, where the larger has 360 more."""
    small, large = imported(tmp_path, 4), imported(tmp_path, 16)
    layer = 2 * (2 * 1024**2 + 2 * 4 * 64 * 1024 + 3 * 1024 * 4096 + 1024 + 512 + 2048)
    assert small["largest_layer"] == large["largest_layer"] == layer
    assert large["bytes"] - small["bytes"] == 12 * small["largest_layer"] > 300e6
    assert abs(large["peak_anonymous"] - small["peak_anonymous"]) < 3 * small["largest_layer"]
    assert all(result[way]["cpu_seconds"] > 0 for result in (small, large) for way in ("copy", "import"))
    assert [path.suffix for path in tmp_path.iterdir()] == [".json", ".json"], "everything is deleted again"
