"""What is told of a contender's step."""

import statistics

import torch

from benchmarks.contenders.workloads import Piece, Shapes, in_sequence
from benchmarks.timing import timed
from nvlm_train.config.schema import Connector, Language, Model, Vision
from nvlm_train.model.accounting import useful_flops


def model_of(shapes: Shapes) -> Model:
    """The shapes as NVLM-D's settings, for arithmetic; without LayerScale, as by hand."""
    return Model(
        "nvlm_d", Vision(layers=shapes.vit_layers, hidden=shapes.vit_width, heads=shapes.vit_heads, ffn=shapes.vit_ffn, tile_size=shapes.tile,
                         patch=shapes.patch, norm="layer", qkv_bias=True, qk_norm=False, layer_scale=False),
        Connector(hidden=shapes.width), language=Language(
            layers=shapes.layers, hidden=shapes.width, heads=shapes.heads, kv_heads=shapes.kv_heads, head_dim=shapes.head_dim,
            ffn=shapes.ffn, vocab=shapes.vocab))


def useful(work: list[Piece], shapes: Shapes, workload: str) -> float:
    """Operations of a step of the decoder-only model: no padding, logits of supervised tokens, the encoder forward only. The same for
    every contender."""
    trained = ["connector"] if workload == "pretraining" else ["connector", "language"]
    return useful_flops(model_of(shapes), trained, in_sequence(work, shapes)).total


def facts(took: list[float], work: list[Piece], shapes: Shapes, workload: str, flops: float | None = None, **more) -> dict:
    """A line of the table. flops: useful operations, where the model is not NVLM-D."""
    median = statistics.median(took)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    tokens = sum(each.tokens for each in in_sequence(work, shapes))
    return {"seconds": median, "slowest": max(took), "samples_s": len(work) / median, "tokens_s": tokens / median,
            "tflops": (flops or useful(work, shapes, workload)) / median / 1e12, "peak_gib": peak, **more}


def memory_bound(ceiling_gib: float, trained: int) -> float:
    """GiB that our step is meant to stay below: the hand-written one's peak, fp32 master weights and gradients of what is trained, and a
    tenth."""
    return 1.1 * (ceiling_gib + 8 * trained / 2**30)


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """What a square product reaches here and now: 8,192 on a GPU, 1,024 on a CPU."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / statistics.median(timed(lambda: a @ b, 10)) / 1e12
