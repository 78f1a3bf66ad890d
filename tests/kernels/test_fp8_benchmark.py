"""benchmarks/fp8.py runs, on layers so small that its times say nothing."""

import json
import sys

import pytest
import torch

from benchmarks.fp8 import MODELS, main, table
from nvlm_train.config.fp8_layers import linears


def test_layers_are_those_that_were_measured_before_this_code():
    """docs/kernels.md's table, and a row of the large models' others."""
    sides = {pair for _, language, tensor in MODELS for pair in linears(language, tensor).values()}
    assert {(1536, 17920), (1536, 2048), (3584, 37888), (18944, 3584), (3584, 4608), (8192, 7392)} <= sides and len(MODELS) == 4


def test_the_table_has_the_ratio_beside_the_rule():
    line = {"model": "7B", "layer": "linear_fc1", "in": 3584, "out": 37888, "reach": 3274.3, "bf16_tflops": 713.0, "kept_tflops": 950.0,
            "kept_ratio": 950 / 713, "cast_tflops": 925.0, "cast_ratio": 925 / 713, "taken": True}
    assert table([line]).splitlines()[-1] == "| 7B linear_fc1 | 3,584 → 37,888 | 3,274 | 713 | 950, 1.33× | 925, 1.30× | yes |"


def test_it_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fp8.py", "--tiny"])
    assert main() == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [one["layer"] for one in lines] == ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
    assert all(one["bf16_tflops"] > 0 and one["kept_ratio"] > 0 and one["cast_ratio"] > 0 and not one["taken"] for one in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fp8.py"])
    assert main() == 1 and "fp8 is for GPUs of compute capability 8.9 and higher" in capsys.readouterr().err
