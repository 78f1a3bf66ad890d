"""Sinks that may fail or stall, kept away from training: neither a dead server nor a full disk may cost a step."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from queue import Full, Queue

from nvlm_train.optional import reason
from nvlm_train.training.metrics import Sink, StepRecord

log = logging.getLogger(__name__)

WAITING = 10_000    # calls that may wait for the sink; a row is about 5 kB
CLOSE_S = 30.0      # seconds that the end of a stage waits for what is still to be sent


class _Between(Sink):
    """Stands before another sink, and hands each call on by its name."""

    def step(self, record: StepRecord) -> None:
        self._hand_on("step", record)

    def evaluation(self, row: dict) -> None:
        self._hand_on("evaluation", row)

    def scored(self, row: dict, shown: Sequence[dict]) -> None:
        self._hand_on("scored", row, shown)

    def examples(self, stage: str, step: int, rows: Sequence[dict]) -> None:
        self._hand_on("examples", stage, step, rows)

    def saved(self, stage: str, step: int, seconds: float) -> None:
        self._hand_on("saved", stage, step, seconds)

    def _hand_on(self, method: str, *arguments) -> None:
        raise NotImplementedError


class Guarded(_Between):
    """A sink that may fail: after the first exception, which is told in one line, nothing more is sent to it."""

    def __init__(self, name: str, sink: Sink) -> None:
        self._name = name
        self._sink: Sink | None = sink

    def close(self) -> None:
        self._hand_on("close")

    def _hand_on(self, method: str, *arguments) -> None:
        if self._sink is None:
            return
        try:
            getattr(self._sink, method)(*arguments)
        except Exception as error:  # noqa: BLE001 (whatever it is, training matters more)
            self._sink = None
            _tell_off(self._name, error)


class Background(_Between):
    """A sink that is made, fed and closed in a thread of its own, so that no step ever waits for it.

    make: called in that thread, once. The first exception of its making or of any call is told in one line, and nothing more is sent.
    If so many calls wait that no more fit, further ones are left out, and counted. `close` waits for what is still to be
    sent, for `close_s` seconds at most.
    """

    def __init__(self, name: str, make: Callable[[], Sink], close_s: float = CLOSE_S, waiting: int = WAITING) -> None:
        self._name, self._make, self._close_s = name, make, close_s
        self._calls: Queue[tuple | None] = Queue(waiting)
        self._off = threading.Event()
        self._left_out = 0
        self._thread = threading.Thread(target=self._work, name=f"{name} sink", daemon=True)
        self._thread.start()

    def step(self, record: StepRecord) -> None:
        super().step(replace(record, slots=()))     # thousands a step, which nobody there reads

    def close(self) -> None:
        until = time.monotonic() + self._close_s
        with suppress(Full):
            self._calls.put(None, timeout=self._close_s)
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            log.warning("%s has not taken in everything after %.0f s and is left behind; training goes on", self._name, self._close_s)
        if self._left_out:
            log.warning("%s was too slow: %d rows are not in it (metrics.jsonl has all)", self._name, self._left_out)
        self._off.set()

    def _hand_on(self, method: str, *arguments) -> None:
        if self._off.is_set():
            return
        try:
            self._calls.put_nowait((method, *arguments))
        except Full:
            self._left_out += 1

    def _work(self) -> None:
        # Whatever a client of an outside service raises (its own classes, import errors, sockets) has the same answer.
        try:
            sink = self._make()
            while (call := self._calls.get()) is not None:
                method, *arguments = call
                getattr(sink, method)(*arguments)
            sink.close()
        except Exception as error:  # noqa: BLE001
            self._off.set()
            _tell_off(self._name, error)


def _tell_off(name: str, error: Exception) -> None:
    log.warning("%s is off for the rest of this stage (%s); training goes on", name, reason(error))
