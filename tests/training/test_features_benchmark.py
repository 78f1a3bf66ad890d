"""`benchmarks/features.py` runs, at a size that says nothing about speed: what it counts is right."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_benchmark_runs_and_both_ways_agree(tmp_path):
    result = tmp_path / "result.json"
    smaller = ["model.vision.layers=2", "model.language.layers=2", "model.language.hidden=96", "model.vision.hidden=64"]
    sizes = ["--steps", "3", "--batch", "4", "--samples", "12", "--rounds", "1"]
    run = subprocess.run([sys.executable, "-m", "benchmarks.features", *sizes, "--json", str(result), *smaller, "run.device=cpu"],
                         capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(result.read_text())
    assert json.loads(run.stdout.splitlines()[-1]) == found
    assert found["bytes_per_tile"] == {"features": 16 * 16 * 64 * 4, "pixels": 3 * 112 * 112}
    assert found["largest_relative_loss_difference"] < 2e-6      # the bound of tests/parity
    assert 0.05 < found["encoder_share"]["nvlm_d_72b"] < found["encoder_share"]["nvlm_d_2b"] < 0.5
    assert all(found[way]["cpu_seconds"] > 0 for way in ("computed", "cached"))
