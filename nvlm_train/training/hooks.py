"""The hooks that act on a run: checkpoints, validation, the budget of refused samples, the report. `metrics.Recorder` is the
hook that feeds figures to the sinks (logs, progress line, wandb, TensorBoard)."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nvlm_train.config.schema import Run
from nvlm_train.contracts import PackedBatch
from nvlm_train.engine.interface import Engine
from nvlm_train.errors import NvlmError, TrainingError
from nvlm_train.training.loop import StepDone
from nvlm_train.training.metrics import Sink, StepRecord

log = logging.getLogger(__name__)


class QuietHook:
    """A hook that does nothing; the others override what they need."""

    def on_start(self, step: int) -> None:
        pass

    def on_step(self, done: StepDone) -> None:
        pass

    def on_end(self, step: int) -> None:
        pass

    def close(self) -> None:
        pass


def saves_at(run: Run, step: int) -> bool:
    """Whether a checkpoint follows this step: every `run.save_every` steps, and the last."""
    every = run.run.save_every
    return step == run.train.steps or (every > 0 and step % every == 0)


class Checkpoints(QuietHook):
    """Saves when `saves_at` says so, and wherever the run stops early.

    save:   save(step, cursor), on every rank.
    finish: publish a save under way, on every rank; finish(wait=False) only if it is already written.
    before: makes the logs durable, so that no checkpoint is ahead of them (main rank).
    told:   told(step, seconds) after each save: how long training stood still for it.
    cursor: slots of the order consumed before the first step.
    """

    def __init__(self, run: Run, save: Callable[[int, int], None], finish: Callable[[bool], object], before: Callable[[], None],
                 cursor: int, told: Callable[[int, float], None] = lambda step, seconds: None) -> None:
        self._run, self._save, self._finish, self._before, self._cursor, self._told = run, save, finish, before, cursor, told
        self._saved_at = 0

    def on_start(self, step: int) -> None:
        self._saved_at = step

    def on_step(self, done: StepDone) -> None:
        self._cursor = done.batch.cursor
        self._finish(False)
        if saves_at(self._run, done.step):
            self._save_now(done.step)

    def on_end(self, step: int) -> None:
        if step != self._saved_at:
            self._save_now(step)
        self._finish(True)

    def _save_now(self, step: int) -> None:
        began = time.perf_counter()
        self._before()
        self._save(step, self._cursor)
        self._saved_at = step
        self._told(step, time.perf_counter() - began)


class Validation(QuietHook):
    """Loss on held-out rows every `run.eval_every` steps and at the end of the stage; a row of eval.jsonl each time.

    rows: this rank's rows, equally many on every rank. Not run when the stage stops early: the time left is the checkpoint's.
    """

    def __init__(self, run: Run, engine: Engine, rows: Sequence[PackedBatch], sinks: Sequence[Sink]) -> None:
        self._run, self._engine, self._rows, self._sinks = run, engine, rows, sinks
        self._last: tuple[int, float | None] = (-1, None)

    def loss_at(self, step: int) -> float | None:
        """The validation loss measured after this very step; None if there was no validation then."""
        return self._last[1] if self._last[0] == step else None

    def on_step(self, done: StepDone) -> None:
        every = self._run.run.eval_every
        if done.step == self._run.train.steps or (every > 0 and done.step % every == 0):
            self._validate(done.step)

    def _validate(self, step: int) -> None:
        began = time.perf_counter()
        sums = self._engine.evaluate(self._rows)
        weight = sum(weight for _, weight in sums.values())
        row = {
            "stage": self._run.stage, "step": step, "kind": "validation",
            "loss": sum(loss for loss, _ in sums.values()) / weight if weight else None,
            "source_losses": {source: loss / weight for source, (loss, weight) in sorted(sums.items()) if weight},
            "seconds": time.perf_counter() - began,
        }
        self._last = (step, row["loss"])
        for sink in self._sinks:
            sink.evaluation(row)


class RefusedBudget:
    """A check on every record: stops the run when too large a share of the stage's slots so far stayed empty, over all ranks.

    Raises TrainingError on every rank alike once more than `data.max_refused` of at least 100 slots were refused. Checkpoints carry
    the `state`, so that a run that was resumed stops where it would have stopped without.
    """

    GRACE = 100     # slots: a share of fewer means little

    def __init__(self, run: Run, before: Mapping | None = None) -> None:
        """before: the `state` at the checkpoint that the run goes on from."""
        before = before or {"slots": 0, "reasons": {}, "examples": {}}
        self._allowed = run.data.max_refused
        self._slots: int = before["slots"]
        self._reasons: Counter[str] = Counter(before["reasons"])
        self._example: dict[str, str] = dict(before["examples"])

    @property
    def state(self) -> dict:
        """As JSON: slots so far, refused ones by reason, an example of each reason."""
        return {"slots": self._slots, "reasons": dict(self._reasons), "examples": dict(self._example)}

    def __call__(self, record: StepRecord) -> None:
        self._slots += len(record.slots)
        for slot in record.slots:
            if slot.refused is not None:
                self._reasons[slot.refused] += 1
                self._example.setdefault(slot.refused, f"{slot.source}/{slot.key}")
        refused = self._reasons.total()
        if self._slots >= self.GRACE and refused > self._allowed * self._slots:
            counts = self._reasons.most_common()
            reasons = "; ".join(f"{count} {reason} (such as {self._example[reason]})" for reason, count in counts)
            raise TrainingError(
                f"{refused} of {self._slots} samples were refused ({refused / self._slots:.1%}), more than data.max_refused="
                f"{self._allowed:.1%} allows: {reasons}. samples.jsonl names each; mend the data, or raise data.max_refused."
            )


class Report(QuietHook):
    """Rewrites the report every so many steps and at the end, however the stage ends (main rank). A report that cannot be written
    is worth a warning, never the run."""

    def __init__(self, write: Callable[[Path], object], run_dir: Path, every: int) -> None:
        self._write, self._run_dir, self._every = write, run_dir, every

    def on_step(self, done: StepDone) -> None:
        if self._every > 0 and done.step % self._every == 0:
            self._now()

    def close(self) -> None:
        self._now()

    def _now(self) -> None:
        try:
            self._write(self._run_dir)
        except (OSError, ValueError, KeyError, TypeError, NvlmError) as error:
            log.warning("the report could not be written (%s: %s); training goes on", type(error).__name__, error)
