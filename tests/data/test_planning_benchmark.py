"""`benchmarks/planning.py`: fill and balance are facts, not timings, and hold here."""

import json

import pytest

from benchmarks import planning


@pytest.mark.parametrize("samples, ranks, imbalance", [(1024, 8, 0.03), (4096, 64, 0.05)])
def test_rows_are_full_and_ranks_level(samples, ranks, imbalance):
    found = planning.packed(samples, ranks)
    assert found["fill_with_empty_rows"] >= 0.94
    assert 0 <= found["imbalance"] <= imbalance
    assert found["rows"] <= 1.03 * found["rows_bound"]


def test_it_runs_and_tells_all(tmp_path, capsys):
    assert planning.main(["--samples", "3000", "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert len(result["packing"]) == len(planning.STEPS) and result["index"]["samples"] == 3000
    assert "3,000 samples: open" in capsys.readouterr().out
