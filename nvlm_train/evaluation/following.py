"""Whether a training that is followed still goes on, as its run directory tells."""

import time
from collections.abc import Callable, Collection
from pathlib import Path

from nvlm_train.config.dump import runs_from_file
from nvlm_train.errors import ConfigError
from nvlm_train.training.owner import OWNER, WATCHED_S
from nvlm_train.training.status import DONE, STOP, read_next, read_status

PATIENCE_S = 3600.0     # a run without a process may be waiting in a queue, to be started again


class Following:
    """Looks at a run directory now and then. clock: monotonic seconds."""

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._dir, self._clock = run_dir, clock
        self._line, self._changed = None, clock()

    def over(self) -> bool:
        """Whether nothing more will come: the run said so, or failed where nobody starts it again, or nobody has trained for PATIENCE_S."""
        alive, status = self.trains(), read_status(self._dir)
        if alive:
            return False
        if read_next(self._dir) in (DONE, STOP):
            return True
        if status is not None and status.state == "failed" and status.job is None:
            return True
        return self._clock() - self._changed > PATIENCE_S

    def trains(self) -> bool:
        """Whether a process trains there: its line changes every few seconds (`training.owner`)."""
        try:
            line = (self._dir / OWNER).read_text(encoding="utf-8")
        except OSError:
            return False
        if line != self._line:
            self._line, self._changed = line, self._clock()
        return self._clock() - self._changed < 2 * WATCHED_S

    def asks_itself(self) -> Collection[str]:
        """Benchmarks that the training asks at its checkpoints: while it lives, they are left to it."""
        if not self.trains():
            return ()
        try:
            runs = runs_from_file(self._dir / "config.yaml")
        except ConfigError:
            return ()
        return runs[-1].evaluate.benchmarks if runs and runs[-1].evaluate.at_checkpoints else ()
