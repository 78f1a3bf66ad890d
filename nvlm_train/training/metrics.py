"""From finished steps to the figures people read: one record a step, the same on every rank.

A row of metrics.jsonl:
    stage, step                     finished steps of the stage
    loss, grad_norm, lr             loss: weighted mean over the step; null where not finite (then `skipped` is true)
    skipped                         the update was not applied
    samples, refused                slots used and slots left empty; together train.global_batch
    tokens, padded_tokens, fill     real tokens; tokens of all rows with their padding; the first over the second
    imbalance                       useful FLOPs of the replica that had most to do, over the mean, less 1
    tiles                           image tiles, those with cached features included
    memory_tokens                   tokens beside the sequences that cross-attention reads, tags included (X, H)
    step_s, data_wait_s             seconds of the whole step, and how much of it the slowest rank waited for data
    data_wait_share                 the second over the first
    slowest_rank, slowest_host      the rank that worked longest in the last 20 steps before it waited for the others; null if alone
    straggler_share                 share of these steps that the median rank would have saved if that one were no slower than itself.
                                    Ranks of one model replica (tensor, context, pipeline) and of ZeRO-2 and 3 wait for each
                                    other all the time: among those the share is a lower bound
    samples_per_s, tokens_per_s, padded_tokens_per_s    over step_s, all devices together
    tflops                          useful TFLOP/s of each device: vit, connector, llm, cross_attention, total (model/accounting)
    mfu                             useful FLOP/s over the dense bf16 datasheet peak; null on CPU
    devices                         processes that trained this step together
    peak_memory_gib                 the most that one of them has held so far: of its GPU, on a CPU of the host
    source_losses                   source -> its weighted mean loss
"""

import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from nvlm_train.config.schema import Run
from nvlm_train.contracts import PackedBatch, Slot
from nvlm_train.engine.interface import Engine
from nvlm_train.geometry import geometry_of
from nvlm_train.model.accounting import Parts, SampleWork, mfu, trained_components, useful_flops
from nvlm_train.training.loop import StepDone
from nvlm_train.training.stragglers import Stragglers


@dataclass(frozen=True)
class StepRecord:
    """A finished step over all ranks: the row of metrics.jsonl and the step's slots in their order."""

    row: dict
    slots: Sequence[Slot]


class Sink:
    """A reader of figures; each overrides what it reads. Lives on the main rank alone and never talks to other ranks."""

    def step(self, record: StepRecord) -> None:
        """One finished step."""

    def evaluation(self, row: dict) -> None:
        """One finished validation: a row of eval.jsonl."""

    def scored(self, row: dict, shown: Sequence[dict]) -> None:
        """A benchmark's score after a step: a row of eval.jsonl, and some of the answers: rows of predictions.jsonl."""

    def examples(self, stage: str, step: int, rows: Sequence[dict]) -> None:
        """Samples that were answered after a step: rows of predictions.jsonl."""

    def saved(self, stage: str, step: int, seconds: float) -> None:
        """A checkpoint, and how long training stood still for it; one that is written while training goes on is not whole yet."""

    def close(self) -> None:
        """The last call."""


class Share(NamedTuple):
    """What one replica adds to a record."""

    slots: Sequence[Slot]
    flops: Parts
    data_wait_s: float
    memory_tokens: int = 0


class Gathered(NamedTuple):
    """What a rank sends of the steps that waited: their shares if it reads data, what it worked in each, bytes it held at most."""

    shares: Sequence[Share] | None
    work_s: Sequence[float]
    memory: int


class Recorder:
    """Hook that gathers each step's slots and work from all replicas and hands the records on.

    checks:     called with every record on every rank, so they may raise everywhere alike.
    sinks:      main rank only.
    flush_at:   whether records must be complete after this step (a checkpoint follows).
    hosts:      the machine of each rank, in rank order.
    peak:       FLOP/s of each device, None on a CPU.

    Gathering waits for `run.log_every` steps, so that most steps of a large job add no collective.
    """

    def __init__(self, run: Run, engine: Engine, sinks: Sequence[Sink], checks: Sequence[Callable[[StepRecord], None]],
                 flush_at: Callable[[int], bool], hosts: Sequence[str], peak: float | None) -> None:
        self._run, self._engine, self._sinks, self._checks = run, engine, sinks, checks
        self._flush_at, self._devices, self._peak = flush_at, len(hosts), peak
        self._stragglers = Stragglers(hosts)
        self._tile_tokens = geometry_of(run.model).tokens
        self._trained = trained_components(run.model, run.train)
        self._waiting: list[tuple[StepDone, Share]] = []

    def on_start(self, step: int) -> None:
        self._waiting.clear()

    def on_step(self, done: StepDone) -> None:
        work = [sample for row in done.batch.rows for sample in sample_work(row, self._tile_tokens)]
        flops = useful_flops(self._run.model, self._trained, work)
        share = Share(done.batch.slots, flops, done.data_wait_s, sum(sample.memory_tokens for sample in work))
        self._waiting.append((done, share))
        if done.step % max(1, self._run.run.log_every) == 0 or done.report.skipped or self._flush_at(done.step):
            self._flush()

    def on_end(self, step: int) -> None:
        self._flush()

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        mine = [share for _, share in self._waiting] if self._engine.reads_data else None
        gathered = self._engine.gather_objects(Gathered(mine, [done.work_s for done, _ in self._waiting], peak_memory()))
        replicas = [each.shares for each in gathered if each.shares is not None]
        memory = max(each.memory for each in gathered)
        works = zip(*(each.work_s for each in gathered), strict=True)
        for (done, _), work_s, *shares in zip(self._waiting, works, *replicas, strict=True):
            record = make_record(self._run.stage, done, shares, self._devices, self._peak, memory)
            record.row.update(self._stragglers.add(work_s, record.row["step_s"]))
            for sink in self._sinks:
                sink.step(record)
            for check in self._checks:
                check(record)
        self._waiting.clear()


def peak_memory() -> int:
    """Bytes that this process has held at most: of its GPU if it uses one, else of the host."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def sample_work(row: PackedBatch, tile_tokens: int) -> list[SampleWork]:
    """What each sample of a row asks of the model, in row order. tile_tokens: visual tokens of one tile."""
    samples, edges = len(row.keys), row.cu_seqlens[: len(row.keys) + 1].numpy()

    def per_sample(positions, amounts=None) -> np.ndarray:
        at = np.searchsorted(edges, np.asarray(positions, dtype=np.int64), side="right") - 1
        return np.bincount(at, amounts, minlength=samples).astype(np.int64)

    in_memory = row.tile_starts_n.numpy() < 0
    reads = row.reads_s4.numpy()
    places, read = _tile_places(row.tile_starts_n.numpy(), reads)
    tile_sizes = tile_tokens + (row.memory_tags_mG.numpy() >= 0).sum(1) if in_memory.any() else np.zeros(0, dtype=np.int64)
    before = np.concatenate([[0], np.cumsum(tile_sizes)])
    lengths = reads[:, 1] - reads[:, 0]
    tiles = per_sample(places)
    columns = (
        np.diff(edges),
        tiles,
        per_sample(np.flatnonzero(row.loss_weights_T.numpy() > 0)),
        per_sample(places[in_memory][read], tile_sizes[read]),
        per_sample(reads[:, 0], lengths),
        per_sample(reads[:, 0], lengths * (before[reads[:, 3]] - before[reads[:, 2]])),
        tiles if row.features_nLC is not None else np.zeros_like(tiles),
    )
    return [SampleWork(*map(int, numbers)) for numbers in zip(*columns, strict=True)]


def _tile_places(tile_starts: np.ndarray, reads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a row position in the sample of each tile, which of the memory tiles are read). A memory tile has no place of its own: its
    first reader's stands for it, and the tile's before it if nobody reads it."""
    places, memory = tile_starts.copy(), np.flatnonzero(tile_starts < 0)
    for start, _, first, last in reads[::-1]:
        places[memory[first:last]] = start
    return np.maximum.accumulate(places.clip(min=0)), places[memory] >= 0


def _imbalance(work: Sequence[float]) -> float:
    """How much more than the mean the largest is, as a share of it; 0 if there was nothing to do."""
    return max(work) * len(work) / sum(work) - 1 if sum(work) else 0.0


def make_record(stage: str, done: StepDone, replicas: Sequence[Share], devices: int, peak: float | None,
                memory: int) -> StepRecord:
    """Joins what the replicas did in one step. memory: bytes that a process has held at most."""
    slots = sorted((slot for share in replicas for slot in share.slots), key=lambda slot: slot.n)
    flops = sum((share.flops for share in replicas), Parts())
    report, seconds = done.report, done.data_wait_s + done.compute_s
    used, waited = sum(slot.refused is None for slot in slots), max(share.data_wait_s for share in replicas)
    speed = flops.scaled(1e-12 / (seconds * devices))
    row = {
        "stage": stage, "step": done.step, "loss": report.loss, "grad_norm": report.grad_norm, "lr": done.lr,
        "skipped": report.skipped, "samples": used, "refused": len(slots) - used,
        "tokens": report.tokens, "padded_tokens": report.padded_tokens, "fill": report.tokens / max(1, report.padded_tokens),
        "imbalance": _imbalance([share.flops.total for share in replicas]), "tiles": report.tiles,
        "memory_tokens": sum(share.memory_tokens for share in replicas), "step_s": seconds,
        "data_wait_s": waited, "data_wait_share": min(1.0, waited / seconds),
        "samples_per_s": used / seconds, "tokens_per_s": report.tokens / seconds,
        "padded_tokens_per_s": report.padded_tokens / seconds,
        "tflops": {"vit": speed.vision, "connector": speed.connector, "llm": speed.language,
                   "cross_attention": speed.cross_attention, "total": speed.total},
        "mfu": mfu(flops.total, seconds, devices, peak), "devices": devices, "peak_memory_gib": memory / 2**30,
        "source_losses": {source: total / weight for source, (total, weight) in sorted(report.source_losses.items()) if weight},
    }
    return StepRecord(row, slots)


def flat(row: dict, prefix: str) -> dict[str, float]:
    """The numbers of a row under `prefix/`, nested ones as `prefix/tflops/vit`; text and nulls are left out."""
    found: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}/{key}")
        elif isinstance(value, (int, float)):
            found[f"{prefix}/{key}"] = float(value) if not isinstance(value, int) or isinstance(value, bool) else value
    return found
