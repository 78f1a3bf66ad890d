"""The training loop. Everything that is optional (metrics, checkpoints, validation, reports) is a hook; see `hooks`."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Protocol

from nvlm_train.config.schema import Run
from nvlm_train.contracts import StepBatch, StepReport
from nvlm_train.engine.interface import Engine
from nvlm_train.errors import TrainingError
from nvlm_train.health.heart import Heart
from nvlm_train.training.preemption import Preempted, StopSignal, to_stderr
from nvlm_train.training.schedule import lr_at


@dataclass(frozen=True)
class StepDone:
    """One finished step as this rank saw it. `step` counts finished steps of the stage; times are in seconds."""

    step: int
    lr: float
    batch: StepBatch
    report: StepReport
    data_wait_s: float      # waiting for the loader
    compute_s: float        # forward, backward, update
    work_s: float           # the part of it before this rank first waited for all others (engine.interface)


class Hook(Protocol):
    """Something that happens around steps, on every rank. All but `close` may use the engine's collectives."""

    def on_start(self, step: int) -> None:
        """Before the first step; `step` steps of the stage are already done."""

    def on_step(self, done: StepDone) -> None:
        """After every step."""

    def on_end(self, step: int) -> None:
        """After the last step, or when the run is told to stop early."""

    def close(self) -> None:
        """Always called last, also after an error on this rank alone: let go of files and screens, talk to nobody."""


def train(run: Run, engine: Engine, loader: Iterable[StepBatch], hooks: Sequence[Hook], start_step: int = 0,
          tell_stop: Callable[[str], None] = to_stderr, heart: Heart | None = None, naming: AbstractContextManager | None = None) -> int:
    """Train one stage from `start_step` finished steps to `run.train.steps`; returns the number of finished steps.

    loader: this rank's batches from slot `start_step * global_batch` of the order on. tell_stop: see `StopSignal`.
    heart: told what this rank is at. naming: around everything while signals are held off, since a rank whose neighbour has failed is
    told to stop at the same moment.
    Raises Preempted once everything is saved after SIGTERM or SIGINT on any rank, TrainingError when too many steps in a row are
    not finite or the data ends early.
    """
    heart = heart or Heart()
    step, bad_in_a_row, stopped = start_step, 0, False
    with ExitStack() as closing, StopSignal(tell_stop) as stop, naming or nullcontext():
        for hook in hooks:
            closing.callback(hook.close)
        for hook in hooks:
            heart.enter(run.stage, step, type(hook).__name__)
            hook.on_start(step)
        batches = iter(loader)
        while step < run.train.steps and not stopped:
            began = time.perf_counter()
            heart.enter(run.stage, step, "next_batch")
            batch = _next_batch(batches, step, run)
            ready = time.perf_counter()
            heart.enter(run.stage, step, "train_step")
            lr = lr_at(step + 1, run.train)
            report = engine.train_step(batch, lr)
            step += 1

            done = StepDone(step, lr, batch, report, ready - began, time.perf_counter() - ready, engine.work_s)
            for hook in hooks:
                heart.enter(run.stage, step, type(hook).__name__)
                hook.on_step(done)
            bad_in_a_row = bad_in_a_row + 1 if report.skipped else 0
            if bad_in_a_row >= run.train.max_bad_steps:
                raise TrainingError(_too_many_bad_steps(run, engine, done, bad_in_a_row))
            heart.enter(run.stage, step, "asking all ranks whether to stop")
            stopped = engine.any_rank(stop.requested)
        for hook in hooks:
            heart.enter(run.stage, step, type(hook).__name__)
            hook.on_end(step)
        if engine.any_rank(stop.requested):  # also when the signal came during the last save: the next stage must not begin
            raise Preempted(
                f"stopped by {stop.name or 'a signal to another rank'} after step {step} of {run.train.steps} ({run.stage}); "
                "everything is saved. The same command goes on from there."
            )
    return step


def _next_batch(batches, step: int, run: Run) -> StepBatch:
    batch = next(batches, None)
    if batch is None:
        raise TrainingError(
            f"the data ended after step {step} of {run.train.steps} ({run.stage}): "
            "lower train.steps, or raise or remove the epochs of a source"
        )
    return batch


def _too_many_bad_steps(run: Run, engine: Engine, done: StepDone, bad: int) -> str:
    """Names the samples of the last step over all ranks: with non-finite losses one of them is the usual suspect."""
    keys = sorted({slot.key for slots in engine.gather_objects(done.batch.slots) for slot in slots if slot.refused is None})
    shown = ", ".join(keys[:20]) + (f" and {len(keys) - 20} more (samples.jsonl has all)" if len(keys) > 20 else "")
    return (
        f"{bad} steps in a row had a loss or gradient that is not finite (train.max_bad_steps={run.train.max_bad_steps}), "
        f"the last one step {done.step} of {run.stage} at lr {done.lr:.3g}; their updates were not applied. "
        f"Its samples: {shown}. Lower train.lr or train.clip_grad, look at these samples, then resume from the last checkpoint."
    )
