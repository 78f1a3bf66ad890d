"""How a run stands, for whoever started it: people, health checks, and the batch script that may start it again.

A launcher hides exit statuses (torchrun returns 1 for all but 0), so the main rank writes two files into the run directory:

    status.json   where it stands and how it ended, see `Status`
    next          one word for a shell, written when the run ends, absent while it runs and if it dies without a word:
                  requeue (preempted, everything saved), done (nothing left to do), stop (a person must look)

A batch script removes `next` before it starts the run. If there is none afterwards, it starts the run again too: what never gets
anywhere is stopped here, see `StatusFile.begin`.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Self

from nvlm_train.errors import ConfigError, TrainingError, first_line
from nvlm_train.evaluation.guard import TextRegression
from nvlm_train.redaction import of_environment, redact_text
from nvlm_train.training.logs import write_atomically
from nvlm_train.training.preemption import Preempted

STATUS, NEXT = "status.json", "next"
REQUEUE, DONE, STOP = "requeue", "done", "stop"


class Stuck(TrainingError):
    """The run was started again and again and never came further: a person must look before it is started once more."""


@dataclass(frozen=True)
class Status:
    """The content of status.json.

    state:  running | preempted | finished | failed | stuck | regressed. A run that was killed without a word stays "running".
    stage, step: of the newest checkpoint (the asynchronous one under way, if any); stage None before the first stage is known.
    start_stage, start_step: where this job began.
    exit_code: of the main rank's process; None while it runs.
    error:  the first line of what ended the run; None if nothing did.
    save_s: seconds that training stood still for the newest checkpoint; None before the first.
    job:    SLURM_JOB_ID; None outside Slurm.
    alarm:  the text guard's, in a sentence; None if it has none now.
    restarts_without_progress: how often in a row the launcher has started the run again from the same step, this job included.
    time:   when this was written, in UTC.
    """

    state: str
    stage: str | None = None
    step: int = 0
    start_stage: str | None = None
    start_step: int = 0
    save_s: float | None = None
    exit_code: int | None = None
    error: str | None = None
    job: str | None = None
    alarm: str | None = None
    restarts_without_progress: int = 0
    time: str = ""


def read_status(run_dir: Path) -> Status | None:
    """None if there is none, or none that can be read: it is advice, and never stops a run."""
    try:
        content = json.loads((run_dir / STATUS).read_bytes())
        return Status(**{field.name: content[field.name] for field in fields(Status) if field.name in content})
    except (OSError, ValueError, TypeError):
        return None


def read_next(run_dir: Path) -> str | None:
    """requeue, done or stop; None if the run died without a word, or still runs."""
    try:
        return (run_dir / NEXT).read_text(encoding="ascii").strip() or None
    except OSError:
        return None


def refuse_restart(run_dir: Path) -> None:
    """`stop`, for a job that cannot begin, however often it is started: a wrong configuration, or a run directory in use. Under
    Slurm only: elsewhere nobody waits for the word, and a misspelt command should leave no folder behind."""
    if "SLURM_JOB_ID" in os.environ and os.environ.get("RANK", "0") == "0":
        run_dir.mkdir(parents=True, exist_ok=True)
        _write_next(run_dir, STOP)


def _write_next(run_dir: Path, word: str) -> None:
    write_atomically(run_dir / NEXT, f"{word}\n".encode("ascii"))


def write_failure(run_dir: Path, error: str, exit_code: int) -> None:
    """Put down how a job ends that cannot end by itself: it hangs, and the main rank may be the one that does. Written by one rank;
    there is no word, so that the batch script starts again."""
    with suppress(OSError):
        now = replace(read_status(run_dir) or Status("failed"), state="failed", exit_code=exit_code, error=error, time=_now())
        write_atomically(run_dir / STATUS, (json.dumps(asdict(now)) + "\n").encode("utf-8"))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def restarted(environment: Mapping[str, str]) -> bool:
    """Whether Slurm or torchrun has started this run again. False when a person has."""
    return any(environment.get(name, "0") != "0" for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


class StatusFile:
    """Context manager around a whole job, on the main rank, which must own the run directory: writes both files.

    How the job ends decides the word: nothing raised, done; Preempted, requeue; ConfigError, Stuck, TextRegression or Ctrl-C, stop. After any other
    error there is no word, and the batch script starts again.
    """

    def __init__(self, run_dir: Path, max_restarts: int) -> None:
        self._run_dir, self._max_restarts = run_dir, max_restarts
        self._before = read_status(run_dir)
        self._now = Status("running", save_s=self._before.save_s if self._before else None, job=os.environ.get("SLURM_JOB_ID"))

    def __enter__(self) -> Self:
        return self

    def begin(self, stage: str, step: int) -> None:
        """The job starts from `step` finished steps of `stage`.

        Raises Stuck when Slurm or torchrun has started the run more than `run.max_restarts` times in a row from this same step.
        A start by hand begins the count anew.
        """
        before, count = self._before, 0
        again = before is not None and before.state != "finished" and (before.start_stage, before.start_step) == (stage, step)
        if again and restarted(os.environ):
            count = before.restarts_without_progress + 1
        self._going_on(stage=stage, step=step, start_stage=stage, start_step=step, restarts_without_progress=count)
        if count > self._max_restarts:
            why = f" The last one ended with: {before.error}" if before.error else ""
            raise Stuck(
                f"started again {'once' if count == 1 else f'{count} times in a row'} from step {step} of {stage} without reaching a checkpoint, more than "
                f"run.max_restarts={self._max_restarts} allows.{why} Look at the logs of these attempts; save more often "
                "(run.save_every) if the time does not suffice for so many steps; then start the run again by hand, as a new job"
            )

    def saved(self, stage: str, step: int, seconds: float | None = None) -> None:
        self._going_on(stage=stage, step=step, save_s=seconds)

    def alarm(self, text: str | None) -> None:
        """What the text guard says; None once it says nothing any more."""
        if text != self._now.alarm:
            self._going_on(alarm=text)

    def __exit__(self, kind, error, _traceback) -> None:
        state, code, word = _ending(error)
        line = first_line(error) if error is not None else None
        said = redact_text(line, of_environment(os.environ)) if line else kind and kind.__name__
        try:
            self._write(state=state, exit_code=code, error=said)
            if word:
                _write_next(self._run_dir, word)
        except OSError:
            if error is None:
                raise
            # A full disk, most likely: the error on its way out says so better.

    def _going_on(self, **changes) -> None:
        # There may be a word of an earlier job, or one for another job that was refused because this one runs.
        (self._run_dir / NEXT).unlink(missing_ok=True)
        self._write(**changes)

    def _write(self, **changes) -> None:
        self._now = replace(self._now, **changes, time=_now())
        write_atomically(self._run_dir / STATUS, (json.dumps(asdict(self._now)) + "\n").encode("utf-8"))


def _ending(error: BaseException | None) -> tuple[str, int, str | None]:
    """(state, exit code, word) of a job that ends with `error`."""
    match error:
        case None:
            return "finished", 0, DONE
        case Preempted():
            return "preempted", Preempted.exit_code, REQUEUE
        case ConfigError():
            return "failed", 2, STOP
        case TextRegression():
            return "regressed", TextRegression.exit_code, STOP
        case Stuck():
            return "stuck", 1, STOP
        case KeyboardInterrupt():
            return "failed", 130, STOP
        case _:
            return "failed", 1, None
