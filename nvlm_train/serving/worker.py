"""The thread that owns the model. Orders go in, news comes out; nobody else touches the engine.

Under torchrun every rank makes the same rounds: the main rank hands its orders to the others, who mirror its calls.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nvlm_train.errors import DataError
from nvlm_train.generation.generator import Generator
from nvlm_train.generation.request import News, Request

HEARTBEAT_S = 1.0       # an idle round: the other ranks wait in a collective, which must not run into its time limit

Share = Callable[["Orders | None"], "Orders"]   # the main rank's orders on every rank; the others give None


@dataclass(frozen=True)
class Orders:
    """What a round begins with."""

    requests: tuple[Request, ...] = ()
    cancelled: tuple[str, ...] = ()
    stop: bool = False


@dataclass(frozen=True)
class Refused:
    """A request that the generator did not take, and why."""

    id: str
    problem: str


def play_round(generator: Generator, orders: Orders) -> list[News | Refused]:
    """What every rank does with the same orders."""
    told: list[News | Refused] = []
    for request in orders.requests:
        try:
            generator.submit(request)
        except DataError as error:
            told.append(Refused(request.id, str(error)))
    for id in orders.cancelled:
        generator.cancel(id)
    if generator.busy and not orders.stop:
        told += generator.step()
    return told


def follow(generator: Generator, share: Share) -> None:
    """The life of a rank that is not the main one: mirror rounds until told to stop."""
    while not (orders := share(None)).stop:
        play_round(generator, orders)


class Inbox:
    """Where the main rank's orders are left, from any thread."""

    def __init__(self) -> None:
        self._left: queue.SimpleQueue[Request | str | None] = queue.SimpleQueue()

    def submit(self, request: Request) -> None:
        self._left.put(request)

    def cancel(self, id: str) -> None:
        self._left.put(id)

    def stop(self) -> None:
        """End after the round that is being made; what still runs is dropped."""
        self._left.put(None)

    def take(self, wait_s: float) -> Orders:
        """Everything that was left. If that is nothing, wait for something, but no longer than `wait_s`."""
        found, until = [], time.monotonic() + wait_s
        while True:
            try:
                found.append(self._left.get(timeout=max(0.0, until - time.monotonic())) if not found else self._left.get_nowait())
            except queue.Empty:
                break
        requests = tuple(each for each in found if isinstance(each, Request))
        return Orders(requests, tuple(each for each in found if isinstance(each, str)), stop=None in found)


class Worker(threading.Thread):
    """Opens the model and makes rounds, on the main rank.

    open_generator: called in this thread, since what prepares Megatron for the CPU holds for one thread alone; gives the generator,
    and how orders are shared. deliver: called with every round's news, in this thread. ended: called last, with the exception that
    ended it, or None after `inbox.stop`.
    """

    def __init__(self, inbox: Inbox, open_generator: Callable[[], tuple[Generator, Share]],
                 deliver: Callable[[Sequence[News | Refused]], None], ended: Callable[[BaseException | None], None]):
        super().__init__(name="model", daemon=True)     # a thread that hangs in a collective must not keep the process
        self._inbox, self._open, self._deliver, self._ended = inbox, open_generator, deliver, ended

    def run(self) -> None:
        problem = None
        try:
            self._rounds(*self._open())
        except BaseException as error:  # noqa: BLE001 (whatever it is, somebody waits for an answer)
            problem = error
        self._ended(problem)

    def _rounds(self, generator: Generator, share: Share) -> None:
        while True:
            orders = share(self._inbox.take(0.0 if generator.busy else HEARTBEAT_S))
            if told := play_round(generator, orders):
                self._deliver(told)
            if orders.stop:
                return
