"""The scheduler's time limit, and whether what is left of it suffices to get anywhere."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from nvlm_train.training.hooks import QuietHook
from nvlm_train.training.logs import METRICS, read_rows
from nvlm_train.training.loop import StepDone
from nvlm_train.training.progress import duration
from nvlm_train.training.status import read_status

log = logging.getLogger(__name__)


class TimeLimit(QuietHook):
    """Says when the job will end, and warns once if a step and a checkpoint do not fit before that: then no restart helps.

    end:    of the job, in seconds as time.time() counts them.
    step_s, save_s: seconds of a step and of a checkpoint, from an earlier job; None if there was none. The first step of this job
                    counts where none is known.
    """

    def __init__(self, end: float, step_s: float | None = None, save_s: float | None = None,
                 now: Callable[[], float] = time.time) -> None:
        self._end, self._step_s, self._save_s, self._now = end, step_s, save_s, now
        self._warned = False

    def on_start(self, step: int) -> None:
        log.info("the job's time limit is in %s", duration(max(self._end - self._now(), 0)))
        self._check()

    def on_step(self, done: StepDone) -> None:
        if self._step_s is None:
            self._step_s = done.data_wait_s + done.compute_s
            self._check()

    def _check(self) -> None:
        left = self._end - self._now()
        if not self._warned and self._step_s is not None and left < self._step_s + (self._save_s or 0.0):
            self._warned = True
            saving = f" and a checkpoint {duration(self._save_s)}" if self._save_s else ""
            log.warning("the job ends in %s, but a step takes %s%s: this job, started again, will not come further. Ask for more time "
                        "(cluster.time)", duration(max(left, 0)), duration(self._step_s), saving)


def time_limit(run_dir: Path, stage: str, environment: Mapping[str, str]) -> TimeLimit | None:
    """What SLURM_JOB_END_TIME says, with the durations that an earlier job left in the run directory; None without a limit."""
    try:
        end = float(environment["SLURM_JOB_END_TIME"])
    except (KeyError, ValueError):
        return None
    # The first step of a job warms up and says little; an interrupted job has at least that one.
    steps = [row["step_s"] for row in read_rows(run_dir / METRICS) if row.get("stage") == stage and row.get("step_s")][-5:]
    before = read_status(run_dir)
    return TimeLimit(end, min(steps) if steps else None, before.save_s if before else None)
