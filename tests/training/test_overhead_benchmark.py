"""benchmarks/overhead.py: the host's time of a row is told apart from a step's, and Python's from torch's."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import overhead

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "overhead.py"


def test_rows_are_told_apart_from_the_step(monkeypatch):
    """With a clock that advances 5 ms for each row and 3 for the step."""
    now = [0.0]

    def step(rows: int) -> None:
        now[0] += 0.003 + 0.005 * rows

    monkeypatch.setattr(time, "process_time", lambda: now[0])
    assert overhead.timed(step, 3) == (pytest.approx(5.0), pytest.approx(3.0))


def test_python_is_told_apart_from_torch():
    """One large product is torch's time, a loop that counts is Python's."""
    a = torch.randn(400, 400)

    def count() -> int:
        return sum(number % 7 for number in range(200_000))

    torches = overhead.profiled(lambda rows: [torch.matmul(a, a) for _ in range(30)], 1)
    pythons = overhead.profiled(lambda rows: count(), 1)
    assert torches["python"] < 0.2 * torches["all"] and pythons["python"] > 0.9 * pythons["all"] and pythons["stand-in"] == 0


@pytest.mark.full
def test_at_tiny_size_python_is_within_five_percent_of_a_row(tmp_path):
    """A row of the 1.5B model takes the GPU 192 ms; the tiny model's Python, seconds of the processor, is under 9.6."""
    done = subprocess.run([sys.executable, str(SCRIPT), "--layers", "2,2", "--json", "told.json"], cwd=tmp_path, capture_output=True, text=True,
                          timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert [one["model"] for one in told["found"]] == ["d", "x", "h", "by hand"]
    assert all(0 < one["python_ms"] < 0.05 * 1e3 * told["row_s"] for one in told["found"])
    assert all(one["python_ms"] + one["stand_in_ms"] < one["row_ms"] for one in told["found"])
