"""The hook behind `run.profile`: records the steps that it names, once, and writes what came of it."""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from nvlm_train.config.profile_rules import profiled_steps
from nvlm_train.config.schema import Run
from nvlm_train.contracts import PackedBatch
from nvlm_train.engine.interface import Engine
from nvlm_train.geometry import geometry_of
from nvlm_train.model.accounting import trained_components, useful_by_part
from nvlm_train.training.hooks import QuietHook
from nvlm_train.training.logs import write_atomically
from nvlm_train.training.loop import StepDone
from nvlm_train.training.metrics import sample_work
from nvlm_train.training.profile.page import write_page
from nvlm_train.training.profile.session import Measured, Session
from nvlm_train.training.profile.summary import Share, summary

FOLDER, SUMMARY = "profile", "summary.json"

log = logging.getLogger(__name__)


class Profile(QuietHook):
    """On every rank, and first of all hooks: a step ends when it is called. Whatever fails here is told and training goes on.

    device: the GPU's name and peak: its FLOP/s; None on a CPU.
    """

    def __init__(self, run: Run, engine: Engine, device: str | None, peak: float | None) -> None:
        self._run, self._engine, self._device, self._peak = run, engine, device, peak
        self._wanted = profiled_steps(run.run.profile)
        self._trained = trained_components(run.model, run.train)
        self._session: Session | None = None
        self._failed: str | None = None
        self._finished = False
        self._steps: list[int] = []
        self._others_s: list[float] = []
        self._flops: Counter[str] = Counter()

    def on_start(self, step: int) -> None:
        if step >= self._wanted[-1]:
            log.info("run.profile=%s: these steps are done already (%d are), so nothing is profiled", self._run.run.profile, step)
        self._begin_before(step + 1)

    def on_step(self, done: StepDone) -> None:
        if done.step in self._wanted:
            if self._session:
                self._session.step_done(done.data_wait_s, done.compute_s)
            self._steps.append(done.step)
            self._flops.update(useful_of(self._run, self._trained, done.batch.rows))
            if done.step == self._wanted[-1]:
                self._finish()
        elif done.step < self._wanted[0]:
            self._others_s.append(done.data_wait_s + done.compute_s)
        self._begin_before(done.step + 1)

    def on_end(self, step: int) -> None:
        if self._steps and not self._finished:      # told to stop among the profiled steps, all ranks after the same one
            self._finish()

    def close(self) -> None:
        """Also after an error: without a word to other ranks."""
        session, self._session = self._session, None
        if session:
            session.stop()

    def _begin_before(self, step: int) -> None:
        if self._session or self._steps or step not in self._wanted:
            return
        try:
            self._session = Session(self._engine.stages(), self._engine.device)
        except Exception as error:  # noqa: BLE001 (the other ranks will wait for this one's share of the summary)
            self._failed = told(error)

    def _finish(self) -> None:
        """A collective of all ranks, also of those that recorded nothing. The first one writes the summary and the page."""
        self._finished = True
        folder = Path(self._run.run.dir) / FOLDER / self._run.stage
        measured = self._measured(folder / f"trace-rank{self._engine.rank}.json.gz")
        share = Share(measured, self._flops if self._engine.reads_data else None, self._failed)
        shares = self._engine.gather_objects(share)
        if not self._engine.is_main:
            return
        try:
            write_profile(folder, summary(self._run.stage, self._steps, shares, self._device, self._peak, self._others_s[1:]))
            log.info("where the time of %s %s goes: %s", self._run.stage, self._run.run.profile, folder / "profile.html")
        except Exception as error:  # noqa: BLE001 (a page is not worth a run)
            log.warning("the profile of %s could not be written (%s); training goes on", self._run.stage, told(error))

    def _measured(self, file: Path) -> Measured | None:
        session, self._session = self._session, None
        if session is None:
            return None
        try:
            session.stop()
            return session.measured(file)
        except Exception as error:  # noqa: BLE001 (as above)
            self._failed = told(error)
            return None


def write_profile(folder: Path, content: dict) -> None:
    """summary.json and profile.html. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SUMMARY, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode("utf-8"))
    write_page(folder, content)


def useful_of(run: Run, trained: Iterable[str], rows: Iterable[PackedBatch]) -> dict[str, int]:
    """Useful operations of a step over these rows, by part."""
    tile_tokens = geometry_of(run.model).tokens
    return useful_by_part(run.model, trained, [sample for row in rows for sample in sample_work(row, tile_tokens)])


def told(error: Exception) -> str:
    """In a few words."""
    return f"{type(error).__name__}: {error}"
