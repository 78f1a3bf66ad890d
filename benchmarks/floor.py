"""What the fixed workloads of benchmarks/train.py need at least, without a GPU. `python -m benchmarks.floor`

Useful operations of a step by component, and how many times fewer than NVLM-D's; seconds if all of it ran at the rate of a large matrix
product (773 TFLOP/s on an H100), and seconds that `nvlm plan` expects there; bytes that AdamW reads and writes, and their seconds at
3.35 TB/s. Memory: what the planner says of our step on its fullest row (`planning.memory`, all tensors), and the bound: the hand-written
step's peak, measured once, and the bytes of fp32 master weights and gradients, and a tenth.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.contenders import ours
from benchmarks.contenders.result import memory_bound
from benchmarks.contenders.workloads import SHAPES, WORKLOADS, pieces
from benchmarks.results import tell
from nvlm_train.contracts import PackedBatch
from nvlm_train.geometry import geometry_of
from nvlm_train.model.accounting import COMPONENTS, trained_components, useful_flops
from nvlm_train.model.parameters import trained_names, whole_parameters
from nvlm_train.planning.devices import GPUS, Cluster
from nvlm_train.planning.fabric import fabric, kernels_on
from nvlm_train.planning.memory import rank_memory
from nvlm_train.planning.rows import RowSize
from nvlm_train.planning.step import Step, row_of
from nvlm_train.planning.timing import step_time
from nvlm_train.training.metrics import sample_work

MATMUL, BANDWIDTH = 773e12, 3.35e12     # one H100, 22 November 2026, torch 2.11; its datasheet
ONE = Cluster(GPUS["h100"], 1, 1)
CEILING_GIB = {"pretraining": 21, "finetuning": 36}     # the hand-written step's peak, same day and machine
UPDATE_BYTES = 30       # a trained parameter, once a step: docs/performance.md


def row_size(row: PackedBatch, tile_tokens: int) -> RowSize:
    """A packed row (without tags in its memory) as the planner's memory formulas take it."""
    shown = int((row.tile_starts_n >= 0).sum())
    reads = row.reads_s4.tolist()
    return RowSize(len(row.tokens_T), len(row.tile_starts_n), int((row.loss_weights_T > 0).sum()), shown,
                   memory=(len(row.tile_starts_n) - shown) * tile_tokens, readers=sum(end - start for start, end, _, _ in reads),
                   keys=sum(last - first for _, _, first, last in reads) * tile_tokens, spans=len(reads))


def needs(workload: str, architecture: str, size: str, *words: str) -> Iterator[dict]:
    """With the encoder computing, and with its features cached. words: settings of the run."""
    shapes = SHAPES[size]
    run = ours.run_of(workload, architecture, shapes, ["model.dtype=bf16", *words])
    small = replace(shapes, tile=32, patch=1) if size == "1.5b" else shapes     # as many visual tokens of fewer pixels: nobody looks at them
    rows = ours.rows_of(run, pieces(workload, shapes), architecture, small, False, torch.bfloat16)
    tile_tokens, learned = geometry_of(run.model).tokens, trained_components(run.model, run.train)
    names = trained_names(run.model, tuple(run.train.trainable))
    trained = sum(parameter.elements for parameter in whole_parameters(run.model) if parameter.name in names)
    planned = max(rank_memory(run, 1, 0, row_size(row, tile_tokens)).tensors for row in rows)
    works = [sample_work(row, tile_tokens) for row in rows]
    h100 = fabric(ONE, run.layout, kernels_on(ONE.gpu, run.model))
    for cached in (False, True):
        samples = [[sample._replace(cached=cached * sample.tiles) for sample in row] for row in works]
        flops = useful_flops(run.model, learned, [sample for row in samples for sample in row])
        step = Step(tuple(row_of(row, run.data.pack_tokens) for row in samples), fill=1.0, imbalance=0.0)
        yield {"workload": workload, "model": architecture, "settings": words, "cached": cached, "rows": len(rows),
               "samples": sum(map(len, works)), "flops": flops.total,
               "shares": {name: getattr(flops, name) / flops.total for name in COMPONENTS}, "matmul_s": flops.total / MATMUL,
               "planned_s": step_time(run, h100, step, 1, flops).seconds,
               "trained": trained, "update_bytes": UPDATE_BYTES * trained, "planned_gib": planned / 2**30,
               "bound_gib": memory_bound(CEILING_GIB[workload], trained)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SHAPES), default="1.5b")
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    options = parser.parse_args()
    found = [each for workload in WORKLOADS for model in "dxh" for each in needs(workload, model, options.size)]
    if options.size == "7b":
        found += needs("finetuning", "d", options.size, "model.fp8=current")
    print("| workload | model | 10¹² operations | encoder, connector, language, cross-attention | times fewer than D | s at the matmul rate | "
          "planned s | update, GB (ms) | planned GiB | bound |\n|---|---|---|---|---|---|---|---|---|---|")
    for one in found:
        most = next(other["flops"] for other in found if (other["workload"], other["model"]) == (one["workload"], "d"))
        shares = ", ".join(f"{share:.0%}" for share in one["shares"].values())
        name = ", ".join((one["model"].upper(), *one["settings"], *["cached features"] * one["cached"]))
        print(f"| {one['workload']} | {name} | {one['flops'] / 1e12:,.0f} | {shares} | {most / one['flops']:.2f} | {one['matmul_s']:.2f} | {one['planned_s']:.2f} | "
              f"{one['update_bytes'] / 1e9:.1f} ({one['update_bytes'] / BANDWIDTH * 1e3:.1f}) | {one['planned_gib']:.1f} | {one['bound_gib']:.1f} |")
    tell({"found": found}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
