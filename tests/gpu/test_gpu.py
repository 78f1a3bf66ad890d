"""What only a GPU can show: the flash path of packed attention, and training in bf16. Run by `make test` where there is one."""

import json
import time
from pathlib import Path

import pytest
import torch

from tests.engine.launching import launch

pytestmark = [pytest.mark.distributed, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
PARITY = Path(__file__).parents[1] / "parity" / "train_ranks.py"


def test_flash_attention_of_packed_rows_agrees_with_the_masked_form():
    """bf16 has 8 bits of mantissa: outputs of size one may differ by a few 2^-8."""
    from nvlm_train.model.attention import PackedCausalAttention, _by_mask, packing

    edges = [0, 100, 357, 512]
    cu_seqlens = torch.tensor(edges, dtype=torch.int32, device="cuda")
    random = torch.Generator("cuda").manual_seed(0)
    q, k, v = (torch.randn(512, heads, 64, generator=random, device="cuda", dtype=torch.bfloat16) for heads in (8, 2, 2))
    attention = PackedCausalAttention(None, 1, None, "self", kernel="varlen")
    got = attention(q[:, None], k[:, None], v[:, None], packed_seq_params=packing(cu_seqlens, 257, edges)).view(512, 8, 64)
    expected = _by_mask(q.float(), k.float(), v.float(), cu_seqlens, None)
    assert float((got.float() - expected).abs().max()) < 0.03


@pytest.mark.hardware
def test_the_stopwatch_takes_the_gpus_time_and_not_the_hosts():
    """Fifty products are queued at once and computed one after another: most of the time passes after the host has gone on."""
    from nvlm_train.engine.stopwatch import Stopwatch

    watch, matrix = Stopwatch(torch.device("cuda")), torch.randn(4096, 4096, device="cuda")
    matrix @ matrix     # loads the library
    torch.cuda.synchronize()
    began = time.perf_counter()
    watch.start()
    for _ in range(50):
        matrix @ matrix
    watch.stop()
    queued = time.perf_counter() - began
    torch.cuda.synchronize()
    assert queued < watch.read() <= time.perf_counter() - began


CLIP = ("model.vision.first_norm=true", "model.vision.patch_bias=false", "model.vision.layer_scale=false",
        "model.vision.activation=quick_gelu")


@pytest.mark.parametrize("encoder", [(), CLIP], ids=["InternViT", "CLIP"])
def test_bf16_training_on_the_gpu_follows_fp32(tmp_path, encoder):
    """Both stages of the tiny recipe, bf16 with fp32 master weights against fp32: the same curve to bf16's precision."""
    curves = {}
    for dtype in ("fp32", "bf16"):
        out = tmp_path / f"{dtype}.json"
        done = launch(PARITY, 1, out, "nvlm_d_tiny", 20, f"model.dtype={dtype}", *encoder, folder=tmp_path, timeout=300)
        assert done.returncode == 0, done.output[-3000:]
        curves[dtype] = json.loads(out.read_text())["nvlm_d_tiny"]
    for stage, expected in curves["fp32"].items():
        assert expected[-1]["loss"] < expected[0]["loss"]
        for a, b in zip(expected, curves["bf16"][stage], strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=0.02)


def test_cached_features_change_nothing_on_the_gpu(tmp_path, monkeypatch):
    """bf16: a product in another batch may round another way, which the loss shows in its third digit at most."""
    monkeypatch.setenv("NVLM_CACHE", str(tmp_path / "data"))
    done = launch(PARITY.with_name("cached_ranks.py"), 1, tmp_path, "layout.tensor=1", "recipe=nvlm_d_tiny", "stage=pretrain",
                  "train.steps=8", "train.global_batch=8", "train.warmup_steps=0", "train.lr=5e-4", "train.min_lr=0",
                  "run.examples=0", folder=tmp_path, timeout=300)
    assert done.returncode == 0, done.output[-3000:]
    cached, computed = ([json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
                        for name in ("cached-0", "computed-0"))
    assert len(cached) == 8 and cached == pytest.approx(computed, rel=2e-3)


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3", "zero3 offload"])
def test_deepspeed_follows_megatron_on_the_gpu(tmp_path, engine):
    """Both stages in bf16 with fp32 master weights: one step's gradients to bf16's precision, and so the curve."""
    pytest.importorskip("deepspeed")
    out = tmp_path / "curves.json"
    done = launch(PARITY.with_name("engine_ranks.py"), 1, out, "curves", "nvlm_x_tiny", 20, f"megatron,{engine}", folder=tmp_path,
                  timeout=600)
    assert done.returncode == 0, done.output[-3000:]
    curves = json.loads(out.read_text())["curves"]
    for stage, expected in curves["megatron"]["nvlm_x_tiny"].items():
        assert len(expected) == 20 and expected[-1][0] < expected[0][0]
        for (loss, _), (other, _) in zip(expected, curves[engine]["nvlm_x_tiny"][stage], strict=True):
            assert other == pytest.approx(loss, rel=0.02)
