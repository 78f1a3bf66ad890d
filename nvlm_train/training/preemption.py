"""Being asked to stop: a signal becomes a flag that the loop looks at between steps."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Self

from nvlm_train.errors import TrainingError


class Preempted(TrainingError):
    """The run stopped because it was told to, with everything saved. Resuming goes on where it left off."""

    exit_code = 75  # EX_TEMPFAIL: "try again later", which is what a scheduler's requeue does


def to_stderr(text: str) -> None:
    """Straight to the descriptor: print() may be in the middle of a write when the signal arrives."""
    os.write(2, f"\n{text}\n".encode())


class Told:
    """What tells a person that the run was asked to stop, and remembers that it did, for work that may be broken off."""

    def __init__(self, tell: Callable[[str], None] = to_stderr) -> None:
        self._tell = tell
        self.once = False

    def __call__(self, text: str) -> None:
        self.once = True
        self._tell(text)


class StopSignal:
    """Context manager that turns SIGUSR1 and SIGTERM (what schedulers send, `docker stop`) and SIGINT (Ctrl-C) into `requested`.

    Another Ctrl-C a second or more later interrupts at once, for a person who cannot wait (sooner, it is torchrun passing on the
    first one); another SIGTERM changes nothing, since schedulers repeat it while the checkpoint is being written. Outside the
    main thread, where Python allows no handlers, nothing is caught.

    tell: called in the signal handler with one sentence for the person who waits; it must take no lock.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, tell: Callable[[str], None] = to_stderr) -> None:
        self._tell = tell
        self.name: str | None = None
        self._at = 0.0
        self._before: dict = {}

    @property
    def requested(self) -> bool:
        return self.name is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._on_signal:     # else somebody has decided otherwise meanwhile
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame) -> None:
        if self.requested:
            if number == signal.SIGINT and time.monotonic() - self._at >= 1:
                raise KeyboardInterrupt
            return
        self.name, self._at = signal.Signals(number).name, time.monotonic()
        self._tell(f"{self.name}: finishing this step, then saving and stopping")
