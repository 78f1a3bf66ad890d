"""Linear layers of a decoder in bf16 and in fp8 by torch: forward and both gradients of each, one after the other on one GPU.

    python benchmarks/fp8.py                                  8,192 tokens; the layers of Qwen2 1.5B and 7B, of 34B and 72B at TP8
    python benchmarks/fp8.py --tokens 4096 --rounds 20
    python benchmarks/fp8.py --tiny                           small layers on a CPU, to see that it runs; says nothing about speed

Two times in fp8: `kept`, the weight's cast kept from before, as with many rows a step; `cast`, the weight cast in each round too, as with
one row a step. What is compared is `model.fp8=current` as it trains, casts compiled. A line of JSON each, then a table; `taken` says
whether `model.fp8_layers=auto` takes the layer, which is right where the ratio is above 1.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

if not __package__:     # python benchmarks/fp8.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import name_of, timed
from nvlm_train.config.fp8_layers import PAYS, linears, reach
from nvlm_train.config.schema import Language
from nvlm_train.model.fp8_cast import PLAIN, compiled
from nvlm_train.model.fp8_linear import Fp8Product

# (name, sizes, tensor-parallel ranks)
MODELS = [("1.5B", Language(hidden=1536, heads=12, kv_heads=2, ffn=8960), 1), ("7B", Language(hidden=3584, heads=28, kv_heads=4, ffn=18944), 1),
          ("34B at TP8", Language(hidden=7168, heads=56, kv_heads=8, ffn=20480), 8), ("72B at TP8", Language(), 8)]
TINY = [("tiny", Language(hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96), 1)]
EACH = 10       # goes in a round, so that the host runs ahead


def median(work: Callable[[], object], rounds: int, each: int) -> float:
    """Seconds of one go, median of rounds."""
    return statistics.median(timed(lambda: [work() for _ in range(each)], rounds)) / each


def measure(width_in: int, width_out: int, tokens: int, rounds: int, device: torch.device) -> dict:
    """Seconds of forward and both gradients."""
    cuda = device.type == "cuda"
    shapes = [(tokens, 1, width_in), (width_out, width_in), (tokens, 1, width_out)]
    x, weight, grad = (torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in shapes)
    leaves = x.requires_grad_(), (weight / width_in**0.5).requires_grad_()
    product = Fp8Product(compiled() if cuda else PLAIN)

    def both(linear: Callable[[Tensor, Tensor], Tensor], before: Callable[[], object] = lambda: None) -> Callable[[], object]:
        def go() -> None:
            before()
            torch.autograd.grad(linear(*leaves), leaves, grad)
        return go

    each = EACH if cuda else 1
    found = {"bf16": median(both(F.linear), rounds, each), "kept": median(both(product), rounds, each),
             "cast": median(both(product, lambda: product.forget(frozen=True)), rounds, each)}
    flops = 6 * tokens * width_in * width_out
    return {**{f"{name}_tflops": flops / took / 1e12 for name, took in found.items()},
            "kept_ratio": found["bf16"] / found["kept"], "cast_ratio": found["bf16"] / found["cast"]}


def table(lines: list[dict]) -> str:
    shown = ["| layer | in → out | in × out / (in + out) | bf16 TFLOP/s | fp8, weight kept | fp8, weight cast | taken |", "|---|---|---|---|---|---|---|"]
    for one in lines:
        shown.append(f"| {one['model']} {one['layer']} | {one['in']:,} → {one['out']:,} | {one['reach']:,.0f} | {one['bf16_tflops']:.4g} | "
                     f"{one['kept_tflops']:.4g}, {one['kept_ratio']:.2f}× | {one['cast_tflops']:.4g}, {one['cast_ratio']:.2f}× | "
                     f"{'yes' if one['taken'] else 'no'} |")
    return "\n".join(shown)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tiny", action="store_true", help="small layers on a CPU: shows only that it runs")
    asked = parser.parse_args()
    if not asked.tiny and not torch.cuda.is_available():
        print("no GPU: fp8 is for GPUs of compute capability 8.9 and higher; --tiny shows on a CPU that this runs", file=sys.stderr)
        return 1
    device = torch.device("cpu" if asked.tiny else "cuda")
    tokens = 64 if asked.tiny else asked.tokens
    lines = []
    for name, language, tensor in TINY if asked.tiny else MODELS:
        for layer, (width_in, width_out) in linears(language, tensor).items():
            found = measure(width_in, width_out, tokens, 2 if asked.tiny else asked.rounds, device)
            lines.append({"model": name, "layer": layer.rpartition(".")[2], "in": width_in, "out": width_out, "tokens": tokens,
                          "reach": reach(width_in, width_out), "taken": reach(width_in, width_out) >= PAYS,
                          "device": name_of(device), "torch": torch.__version__, **found})
            print(json.dumps(lines[-1]), flush=True)
    print(f"\n{lines[0]['device']}, torch {lines[0]['torch']}, {tokens:,} tokens\n\n{table(lines)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
