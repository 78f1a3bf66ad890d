"""A rank's sign of life: at which step it is, what it does there, and since when."""

import time
from collections.abc import Callable
from typing import NamedTuple

# Doing these may rightly take much longer than a step; everything else is part of one.
SETUP = "setting up"
LONG = frozenset({SETUP, "Checkpoints", "Validation", "Examples", "Evaluation", "Report"})
PATIENCE = 4            # times run.hang_s for them
_SLOWEST = 4            # times the slowest step so far are never a hang either


class Beat(NamedTuple):
    """count: beats so far; stage, step: finished steps of the stage; doing: what comes after them; at: monotonic seconds."""

    count: int = 0
    stage: str = ""
    step: int = 0
    doing: str = SETUP
    at: float = 0.0

    @property
    def place(self) -> str:
        """`after step 5 of sft, in train_step`"""
        return f"after step {self.step} of {self.stage}, in {self.doing}" if self.stage else self.doing


class Heart:
    """The training thread beats, a watching thread reads. Replacing one tuple needs no lock, and takes under a microsecond."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.beat = Beat(at=clock())
        self.slowest = 0.0      # seconds between two beats of steps, the first step apart
        self._first = True

    def enter(self, stage: str, step: int, doing: str) -> None:
        """From now on this rank is at `doing`, with `step` steps of the stage finished."""
        before, now = self.beat, self._clock()
        if before.stage != stage:
            self._first = True
        elif before.doing == "train_step":
            if not self._first:
                self.slowest = max(self.slowest, now - before.at)
            self._first = False
        self.beat = Beat(before.count + 1, stage, step, doing, now)

    def limit(self, hang_s: float) -> float:
        """Seconds without a beat that count as a hang now."""
        long = self._first or self.beat.doing in LONG
        return max(hang_s * (PATIENCE if long else 1), _SLOWEST * self.slowest)
