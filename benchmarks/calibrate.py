"""Predicted against measured: rates of this machine, then whole training steps. `python -m benchmarks.calibrate [--json FILE] KEY=VALUE …`

On a GPU: the rates that `nvlm_train/planning/rates.py` assumes (matrix products, attention, memory, launches), steps of nvlm_d_2b at
several rows, and their peak memory, each beside its prediction. Bounds: 15 % for step times, 8 % for peak memory; outside them the
exit status is 1.

On a CPU: rates measured here and now are put in place of a GPU's, the cost of a call is fitted to the smallest model, and steps of
other sizes are predicted with both. That checks the model's arithmetic, not a GPU's figures; there is no bound. A layout of several
processes: torchrun --nproc-per-node 2 -m benchmarks.calibrate layout.tensor=2
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks.results import tell
from benchmarks.samples import full_row, one_sample
from benchmarks.timing import fastest
from nvlm_train.config.compose import compose
from nvlm_train.config.schema import Run
from nvlm_train.contracts import PackedBatch, StepBatch
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.geometry import geometry_of
from nvlm_train.kernels import plan_for
from nvlm_train.planning.devices import GPUS, Gpu
from nvlm_train.planning.fabric import Fabric, Link
from nvlm_train.planning.memory import rank_memory
from nvlm_train.planning.rates import MEASURED, Machine, machine
from nvlm_train.planning.step import Step, row_of
from nvlm_train.planning.timing import step_time, useful_of
from nvlm_train.training.metrics import sample_work

STEP_BOUND, MEMORY_BOUND = 0.15, 0.08
PASSES = 3
SHAPES = ((8192, 8192, 8192), (8192, 17920, 1536), (8192, 2048, 1536), (8192, 37888, 3584), (8192, 3584, 18944), (8192, 7392, 8192))


def sized(hidden: int, layers: int, heads: int, ffn: int) -> list[str]:
    """Settings of a language model."""
    sizes = {"hidden": hidden, "layers": layers, "heads": heads, "kv_heads": heads // 2, "head_dim": hidden // heads, "ffn": ffn}
    return [f"model.language.{name}={size}" for name, size in sizes.items()]


SEEING = ["model.vision.tile_size=64", "model.vision.hidden=256", "model.vision.ffn=1024", "data.pack_tokens=1024"]
CPU_SIZES = (("smallest", 4, sized(64, 4, 4, 192)), ("tiny", 4, []), ("wide", 4, sized(512, 4, 8, 1408)),
             ("deep", 4, sized(256, 12, 4, 704)), ("seeing", 4, SEEING))
GPU_SIZES = (("rows of 2,048", 2, ["data.pack_tokens=2048"]), ("rows of 8,192", 2, ["data.pack_tokens=8192"]),
             ("recomputed", 2, ["data.pack_tokens=8192", "model.recompute=full"]))


@dataclass(frozen=True)
class Case:
    """A run, and the rows of one step of it."""

    name: str
    run: Run
    rows: list[PackedBatch]


def matmul_rate(rows: int, columns: int, inner: int, device: torch.device, dtype: torch.dtype) -> float:
    a, b = torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(inner, columns, device=device, dtype=dtype)
    return 2 * rows * columns * inner / fastest(lambda: a @ b, 20)


def linear_rate(rows: int, columns: int, inner: int, device: torch.device, dtype: torch.dtype) -> float:
    """Of a linear's forward and both of its gradients, their transposed operands included. Of many linears in turn: in training
    no operand is in a cache."""
    sets = [[torch.randn(*shape, device=device, dtype=dtype) for shape in ((rows, inner), (columns, inner), (rows, columns))]
            for _ in range(16)]
    seconds = fastest(lambda: [(x @ w.t(), g @ w, g.t() @ x) for x, w, g in sets], 5)
    return 6 * rows * columns * inner * len(sets) / seconds


def attention_rate(device: torch.device, dtype: torch.dtype, heads: int, tokens: int) -> float:
    """Forward, of causal attention, over the operations that it needs."""
    q, k, v = (torch.randn(1, heads, tokens, 64, device=device, dtype=dtype) for _ in range(3))
    seconds = fastest(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), 20)
    return 4 * heads * 64 * tokens * (tokens + 1) / 2 / seconds


def memory_rate(device: torch.device, dtype: torch.dtype, numbers: int) -> float:
    """Bytes a second of a SwiGLU's element by element kernels, forward and backward, counted as the model counts them: SiLU 2
    numbers, the product 3; backward both factors' gradients 6, SiLU's 3."""
    gate, up = (torch.randn(numbers, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
    gradient = torch.randn(numbers, device=device, dtype=dtype)
    seconds = fastest(lambda: torch.autograd.grad(F.silu(gate) * up, (gate, up), gradient), 20)
    return 14 * gradient.element_size() * numbers / seconds


def launch_seconds(device: torch.device) -> float:
    """Of issuing one kernel."""
    a = torch.zeros(16, device=device)
    return fastest(lambda: [a.add_(1) for _ in range(1000)], 5) / 1000


def cpu_machine(matmuls: float, attention: float, moved: float) -> Machine:
    """A CPU as the time model takes it, at these rates: fp32, one call after the other, a call free as yet."""
    return Machine(matmuls, attention, moved, 0.0, number_bytes=4, accumulate_bytes=12, update_bytes=40, overlaps=False)


def known_gpu(name: str) -> Gpu | None:
    """The one that a driver calls so."""
    return next((gpu for gpu in GPUS.values() if gpu.name in name), None)


def link() -> Link:
    """This job's all-reduce: bandwidth of a ring from a large message, latency from a small one."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Link(1e12, 0.0)
    size, ranks = 1 << 20, dist.get_world_size()
    small, large = torch.zeros(16), torch.zeros(size)
    latency = fastest(lambda: dist.all_reduce(small), 20)
    seconds = max(1e-9, fastest(lambda: dist.all_reduce(large), 20) - latency)
    return Link(2 * 4 * size * (ranks - 1) / ranks / seconds, latency)


def case(name: str, recipe: str, rows: int, overrides: Sequence[str]) -> Case:
    """Rows filled with samples of a picture and a question."""
    words = [f"recipe={recipe}", "stage=sft", "data.max_tokens=512", "data.max_tiles=4", "model.tokenizer=tiny",
             "model.vision.weights=null", "model.language.weights=null"]
    sized = compose([*words, *overrides])[0]
    sample = one_sample(60, sized.model.vision.tile_size)
    run = compose([*words, *overrides, f"data.blend.{sample.source}.path=unused"])[0]
    return Case(name, run, [full_row(sized, sample)] * rows)


def measured(one: Case, rounds: int) -> tuple[float, float | None]:
    """(seconds, peak bytes on a GPU) of a step."""
    engine = MegatronEngine(one.run)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    batch = StepBatch(0, one.rows, (), 0)
    engine.train_step(batch, 1e-5)
    seconds = fastest(lambda: engine.train_step(batch, 1e-5), rounds)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    engine.close()
    return seconds, peak


def predicted(one: Case, on: Fabric) -> float:
    works = [sample_work(row, geometry_of(one.run.model).tokens) for row in one.rows]
    rows = tuple(row_of(samples, one.run.data.pack_tokens) for samples in works)
    world = dist.get_world_size() if dist.is_initialized() else 1
    replicas = world // (one.run.layout.tensor * one.run.layout.pipeline * one.run.layout.context)
    useful = useful_of(one.run, [sample for samples in works for sample in samples])
    cuda = torch.cuda.is_available()
    kernels = plan_for(one.run.model, "cuda" if cuda else "cpu", "bf16" if cuda else "fp32")
    return step_time(one.run, replace(on, kernels=kernels), Step(rows, 1.0, 0.0), replicas, useful).seconds


def on_cpu(overrides: Sequence[str], rounds: int) -> dict:
    cases = [case(name, "nvlm_d_tiny", rows, [*words, *overrides]) for name, rows, words in CPU_SIZES]
    device, dtype = torch.device("cpu"), torch.float32
    found, speeds = [float("inf")] * len(cases), []
    for _ in range(PASSES):     # rates and steps in turn, the best of each: other processes may be at work here
        speeds.append((linear_rate(512, 1408, 512, device, dtype), attention_rate(device, dtype, 4, 128),
                       memory_rate(device, dtype, 1 << 20)))
        found = [min(before, measured(one, rounds)[0]) for before, one in zip(found, cases, strict=True)]
    here = cpu_machine(*(max(speed) for speed in zip(*speeds, strict=True)))
    between = link()

    def fabric(launch_s: float) -> Fabric:
        return Fabric(replace(here, launch_s=launch_s), between, between, between)

    # A step is linear in the cost of a call: two predictions give the one that the smallest model was measured at.
    free, dear = predicted(cases[0], fabric(0.0)), predicted(cases[0], fabric(1e-3))
    launch_s = max(0.0, (found[0] - free) / (dear - free) * 1e-3)
    rates = {"gflops": here.flops / 1e9, "attention_gflops": here.attention_flops / 1e9, "gbytes_s": here.bytes_s / 1e9,
             "call_us": launch_s * 1e6, "link_gbytes_s": between.bandwidth / 1e9, "latency_us": between.latency_s * 1e6}
    rows = [{"case": one.name, "measured_s": seconds, "predicted_s": predicted(one, fabric(launch_s)), "fitted": number == 0}
            for number, (one, seconds) in enumerate(zip(cases, found, strict=True))]
    return {"device": "cpu", "rates": rates, "steps": rows}


def on_gpu(overrides: Sequence[str], rounds: int) -> dict:
    device, dtype, name = torch.device("cuda"), torch.bfloat16, torch.cuda.get_device_name()
    known = known_gpu(name)
    if known is None:
        raise SystemExit(f"{name} is not in nvlm_train/planning/devices.py: add its datasheet's figures first")
    assumed = machine(known)
    rates = {"matmul": [{"shape": shape, "tflops": matmul_rate(*shape, device, dtype) / 1e12,
                         "model_tflops": 2e-12 * shape[0] * shape[1] * shape[2] / assumed.matmul(*shape)} for shape in SHAPES],
             "attention_share": attention_rate(device, dtype, 32, 4096) / known.peak, "model_attention_share": MEASURED.attention,
             "memory_share": memory_rate(device, dtype, 1 << 28) / known.bandwidth, "model_memory_share": MEASURED.memory,
             "launch_us": launch_seconds(device) * 1e6, "model_launch_us": MEASURED.launch_s * 1e6}
    alone, rows = Link(1e12, 0.0), []
    for label, count, words in GPU_SIZES:
        one = case(label, "nvlm_d_2b", count, [*words, *overrides])
        seconds, peak = measured(one, rounds)
        memory = rank_memory(one.run, 1, 0).tensors
        rows.append({"case": label, "measured_s": seconds, "predicted_s": predicted(one, Fabric(assumed, alone, alone, alone)),
                     "measured_bytes": peak, "predicted_bytes": memory, "fitted": False})
    return {"device": name, "rates": rates, "steps": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of all cases")
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    result = (on_gpu if gpu else on_cpu)(options.overrides, options.rounds)
    if int(os.environ.get("RANK", "0")):
        return 0
    outside = 0
    for row in result["steps"]:
        off = row["predicted_s"] / row["measured_s"] - 1
        line = f"{row['case']:<16}{row['measured_s'] * 1e3:>10.1f} ms measured{row['predicted_s'] * 1e3:>10.1f} predicted{off:>+8.0%}"
        outside += gpu and abs(off) > STEP_BOUND
        if gpu:
            over = row["predicted_bytes"] / row["measured_bytes"] - 1
            line += f"{row['measured_bytes'] / 2**30:>8.1f} GiB measured{row['predicted_bytes'] / 2**30:>8.1f} predicted{over:>+8.0%}"
            outside += abs(over) > MEMORY_BOUND
        print(line + ("  (fitted)" if row["fitted"] else ""))
    tell(result, options.json)
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
