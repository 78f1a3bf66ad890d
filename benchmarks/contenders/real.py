"""nvlm_train fed by its own loader from shards on a disk, beside the same rows held in memory: what reading, decoding and packing cost.

Steps go through the real loop (`training.loop.train`), so that a wait is what a run's metrics call one. Both ways take turns over the
same batches.
"""

import os
import statistics
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import torch

from benchmarks.contenders.ours import SOURCE, run_of
from benchmarks.contenders.workloads import WORKLOADS, Shapes
from benchmarks.peers.work import busy_seconds, cpu_seconds
from nvlm_train.config.schema import Run
from nvlm_train.contracts import StepBatch
from nvlm_train.data.loader import build_loader
from nvlm_train.data.shards import ShardFolder
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.geometry import geometry_of
from nvlm_train.model.accounting import trained_components, useful_flops
from nvlm_train.training.hooks import QuietHook
from nvlm_train.training.loop import StepDone, train
from nvlm_train.training.metrics import sample_work

WARM = 2        # steps that are not counted: kernels are chosen, the loader's threads begin


class Seen(QuietHook):
    """What each step took and did."""

    def __init__(self, run: Run) -> None:
        self._model, self._trained, self._tokens = run.model, trained_components(run.model, run.train), geometry_of(run.model).tokens
        self.steps: list[dict] = []

    def on_step(self, done: StepDone) -> None:
        work = [sample for row in done.batch.rows for sample in sample_work(row, self._tokens)]
        self.steps.append({"samples": len(work), "flops": useful_flops(self._model, self._trained, work).total,
                           "seconds": done.data_wait_s + done.compute_s, "wait_s": done.data_wait_s})


def settings(workload: str, shapes: Shapes, shards: Path, threads: int, steps: int) -> list[str]:
    """Settings of a run over these shards, in the workload's batches; samples longer than a row lose tiles or are refused, as always."""
    return [f"data.blend={{{SOURCE}:{{path:{shards}}}}}", "data.validation={}", f"data.workers={threads}",
            f"train.steps={steps + WARM}", "train.warmup_steps=0", f"train.global_batch={shapes.samples[WORKLOADS.index(workload)]}"]


def measure(workload: str, shapes: Shapes, architecture: str, shards: Path, threads: int, steps: int, rounds: int,
            overrides: Iterable[str] = ()) -> dict:
    run = run_of(workload, architecture, shapes, [*settings(workload, shapes, shards, threads, steps), *overrides])
    tokenizer = load_tokenizer(run.model.tokenizer, run.data.template)
    engine = MegatronEngine(run)
    pinned = engine.device.type == "cuda"
    with build_loader(run, tokenizer, 0, 1, pinned=pinned) as loader:
        held, refused = list(islice(loader, steps + WARM)), sum(loader.refused.values())
    kept, read, others = [], [], 0.0
    for _ in range(rounds):
        kept += _steps(run, engine, held)
        with build_loader(run, tokenizer, 0, 1, pinned=pinned) as loader:
            busy, own = busy_seconds(), cpu_seconds()
            read += _steps(run, engine, loader)
            others += busy_seconds() - busy - (cpu_seconds() - own)
    epochs = run.train.steps * run.train.global_batch / len(ShardFolder(shards, SOURCE))
    kernels = engine.kernels.line()
    engine.close()
    return {**facts(read, kept), "threads": threads, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0],
            "others": max(0.0, others / sum(step["seconds"] for step in read)), "refused": refused, "epochs": epochs,
            "kernels": kernels}


def _steps(run: Run, engine: MegatronEngine, batches: Iterable[StepBatch]) -> list[dict]:
    seen = Seen(run)
    train(run, engine, batches, [seen])
    return seen.steps[WARM:]


def facts(read: list[dict], kept: list[dict]) -> dict:
    """From the steps of both ways: samples a second over all of them; waits for the loader; how evenly useful operations are done."""
    seconds, waits = sum(step["seconds"] for step in read), [step["wait_s"] for step in read]
    rate = sum(step["samples"] for step in read) / seconds
    in_memory = sum(step["samples"] for step in kept) / sum(step["seconds"] for step in kept)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"steps": len(read), "seconds": seconds / len(read), "samples_s": rate, "samples_s_in_memory": in_memory,
            "of_memory": rate / in_memory, "tflops": sum(step["flops"] for step in read) / seconds / 1e12, "wait_ms": 1e3 * statistics.mean(waits),
            "wait_ms_p95": 1e3 * p95(waits), "wait_share": sum(waits) / seconds, "spread": spread(read),
            "spread_in_memory": spread(kept), "peak_gib": peak}


def spread(steps: Sequence[dict]) -> float:
    """p95 over median of seconds per useful operation."""
    each = [step["seconds"] / step["flops"] for step in steps]
    return p95(each) / statistics.median(each)


def p95(values: Sequence[float]) -> float:
    """The value that one in twenty exceeds; between two, what lies on the line."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1]
