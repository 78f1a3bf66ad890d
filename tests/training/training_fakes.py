"""A stand-in for the engine and the data, small enough to say by hand what must come out."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from nvlm_train.config.schema import Data, Language, Model, Run, RunSettings, Train, Vision
from nvlm_train.contracts import PackedBatch, Slot, StepBatch, StepReport
from nvlm_train.training.metrics import Sink

MODEL = Model(
    vision=Vision(layers=2, hidden=8, heads=2, ffn=16, tile_size=32, patch=8),
    language=Language(layers=2, hidden=16, heads=2, kv_heads=1, head_dim=8, ffn=32, vocab=64),
)


def make_run(directory="runs/test", stage: str = "pretrain", model: Model = MODEL, data: Data | None = None,
             run: dict | None = None, **train) -> Run:
    return Run(recipe="test", stage=stage, model=model, data=data or Data(), run=RunSettings(dir=str(directory), **(run or {})),
               train=Train(**{"steps": 5, "global_batch": 2, **train}))


def make_row(lengths=(6, 4), tiles=((0,), ()), supervised=2, total=16) -> PackedBatch:
    """Samples of `lengths` tokens, with tiles starting at these positions of each sample, the last few tokens supervised."""
    edges, starts, weights = [0], [], torch.zeros(total)
    for length, positions in zip(lengths, tiles, strict=True):
        starts += [edges[-1] + at for at in positions]
        edges.append(edges[-1] + length)
        weights[edges[-1] - 1 - supervised:edges[-1] - 1] = 1.0
    return PackedBatch(
        tokens_T=torch.zeros(total, dtype=torch.int64), positions_T=torch.zeros(total, dtype=torch.int64),
        labels_T=torch.zeros(total, dtype=torch.int64), loss_weights_T=weights,
        cu_seqlens=torch.tensor([*edges, total] if edges[-1] < total else edges, dtype=torch.int32),
        tiles_nCPP=torch.zeros(len(starts), 3, 32, 32, dtype=torch.uint8), tile_starts_n=torch.tensor(starts, dtype=torch.int64),
        keys=tuple(f"k{i}" for i in range(len(lengths))), sources=("a",) * len(lengths),
    )


def make_batches(run: Run, start: int = 0, refused: Callable[[int], str | None] = lambda n: None):
    """The steps of a run from `start` finished ones on: one row, slots named after their number."""
    size = run.train.global_batch
    for step in range(start, run.train.steps):
        slots = [Slot(n, f"s{n}", "a", refused(n)) for n in range(step * size, (step + 1) * size)]
        yield StepBatch(step + 1, [make_row()], slots, (step + 1) * size)


CPU = torch.device("cpu")


@dataclass
class FakeEngine:
    """One rank. `losses` are played back; `during` is called inside each step with its number, counted from 1 in this process."""

    losses: list[float] = field(default_factory=list)
    during: Callable[[int], None] = lambda step: None
    others: Callable[[object], list] = lambda value: []    # what further ranks would gather
    rank: int = 0
    device: torch.device = CPU
    is_main: bool = True
    reads_data: bool = True
    data_rank: int = 0
    data_size: int = 1
    rates: list[float] = field(default_factory=list)
    work_s: float = 0.0
    gathered: int = 0
    evaluated: int = 0

    def stages(self):
        return []

    def shared(self, batches):
        return batches

    def train_step(self, batch: StepBatch, lr: float) -> StepReport:
        self.rates.append(lr)
        self.during(len(self.rates))
        loss = self.losses[len(self.rates) - 1] if self.losses else 1.0
        finite = math.isfinite(loss)
        return StepReport(loss, 0.5 if finite else float("nan"), 4.0, tokens=10, padded_tokens=16, tiles=1, rows=1,
                          skipped=not finite, source_losses={"a": (4 * loss, 4.0)})

    def evaluate(self, rows):
        self.evaluated += 1
        return {"a": (6.0, 4.0), "b": (2.0, 4.0)}

    def gather_objects(self, value):
        self.gathered += 1
        return [value, *self.others(value)]

    def any_rank(self, flag: bool) -> bool:
        return flag

    def barrier(self) -> None:
        pass


class Diary:
    """A hook that writes down what it was called with."""

    def __init__(self, name: str, entries: list) -> None:
        self.name, self.entries = name, entries

    def on_start(self, step):
        self.entries.append((self.name, "start", step))

    def on_step(self, done):
        self.entries.append((self.name, "step", done.step))

    def on_end(self, step):
        self.entries.append((self.name, "end", step))

    def close(self):
        self.entries.append((self.name, "close"))


class Collector(Sink):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.records, self.evaluations, self.answered, self.saves, self.closed = [], [], [], [], False
        self.scores = []

    def step(self, record):
        self.records.append(record)

    def evaluation(self, row):
        self.evaluations.append(row)

    def scored(self, row, shown):
        self.scores.append((row, shown))

    def examples(self, stage, step, rows):
        self.answered.append((stage, step, rows))

    def saved(self, stage, step, seconds):
        self.saves.append((stage, step))

    def close(self):
        self.closed = True


def with_run(run: Run, **settings) -> Run:
    return replace(run, run=replace(run.run, **settings))
