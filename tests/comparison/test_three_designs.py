"""D, X and H really trained for two steps a stage, asked, and put on one page; then once more, which starts nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import nvlm_train

ROOT = Path(nvlm_train.__file__).resolve().parents[1]
NAMES = ["nvlm_d_tiny", "nvlm_x_tiny", "nvlm_h_tiny"]
SMALL = ["train.steps=2", "train.warmup_steps=1", "train.global_batch=2", "run.eval_batches=1", "run.examples=0", "data.workers=1",
         "eval.limit=4", "eval.max_new_tokens=1"]


def compare(folder: Path) -> subprocess.CompletedProcess:
    words = [f"designs={','.join(NAMES)}", *SMALL, f"run.dir={folder}"]
    return subprocess.run([sys.executable, "-m", "nvlm_train", "compare", *words], check=False, capture_output=True, text=True,
                          timeout=500, env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"})


@pytest.mark.distributed
@pytest.mark.full
def test_three_tiny_designs_to_the_page(tmp_path):
    done = compare(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "compare.json").read_text())
    assert list(found["designs"]) == NAMES and found["failed"] == []
    for name, design in found["designs"].items():
        figures = design["stages"]["sft"]
        assert None not in figures.values() and figures["samples_per_s"] > 0 and figures["gflop_per_sample"] > 0
        assert 0.05 < design["peak_memory_gib"] < 64
        assert sum(marks["questions"] for marks in design["tasks"].values()) == 4
        for marks in design["tasks"].values():
            assert 0 <= marks["low"] <= marks["accuracy"] <= marks["high"] <= 1 and marks["interval"] == "wilson"
        assert (tmp_path / design["runs"]["1234"] / "report.html").is_file()
        assert name in (tmp_path / "compare.html").read_text() and name in done.stdout
    tokens = {name: design["stages"]["sft"] for name, design in found["designs"].items()}
    # The same samples: what D has in its sequence, X has beside it, and H has the thumbnail's in the one and the tiles in the other.
    assert [tokens[name]["memory_tokens_per_sample"] > 0 for name in NAMES] == [False, True, True]
    assert tokens["nvlm_x_tiny"]["tokens_per_sample"] < tokens["nvlm_h_tiny"]["tokens_per_sample"] < tokens["nvlm_d_tiny"][
        "tokens_per_sample"]
    ids = {(tmp_path / name / "seed-1234" / "samples.jsonl").read_text() for name in NAMES}
    assert len(ids) == 1

    began = time.perf_counter()
    again = compare(tmp_path)
    assert again.returncode == 0 and again.stdout.count("is trained already") == 3
    assert time.perf_counter() - began < 60
