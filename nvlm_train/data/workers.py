"""A few daemon threads that decode. Threads and not processes: the decoders release the interpreter lock, and no tile is copied.

A read that hangs cannot be interrupted. So the threads are daemons, which never keep the program from ending, and each says what
it is doing and since when, so that whoever waits can name the shard.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

from nvlm_train.data.tiling import Scratch


class Worker:
    """One thread's own things: its buffers, and a note of what it is doing."""

    def __init__(self):
        self.scratch = Scratch()
        self._doing: tuple[str, float] | None = None

    def note(self, text: str) -> None:
        self._doing = (text, time.monotonic())

    def rest(self) -> None:
        self._doing = None

    def doing(self) -> tuple[str, float]:
        """(what, for how many seconds); ("", 0) when idle."""
        doing = self._doing
        return (doing[0], time.monotonic() - doing[1]) if doing else ("", 0.0)


class Workers:
    """Runs tasks, each called with the `Worker` that runs it. Results and exceptions come back through futures.

    Without threads (0) a task runs where it is submitted, before `submit` returns.
    """

    def __init__(self, threads: int):
        self._tasks: SimpleQueue[tuple[Future, Callable[[Worker], object]] | None] = SimpleQueue()
        self._workers = [Worker() for _ in range(max(1, threads))]
        self._threads = [threading.Thread(target=self._run, args=(worker,), name=f"nvlm-decode-{i}", daemon=True)
                         for i, worker in enumerate(self._workers[:threads])]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Callable[[Worker], object]) -> Future:
        future: Future = Future()
        if self._threads:
            self._tasks.put((future, task))
        else:
            self._do(future, task, self._workers[0])
        return future

    def longest(self) -> tuple[str, float]:
        """What the thread that has been at one thing longest is doing, and for how many seconds."""
        return max((worker.doing() for worker in self._workers), key=lambda doing: doing[1])

    def close(self, patience_s: float = 5.0) -> None:
        """Drop waiting tasks and end the threads. One that hangs in a read is left behind after `patience_s` seconds."""
        while not self._tasks.empty():
            waiting = self._tasks.get()
            if waiting:
                waiting[0].cancel()
        for _ in self._threads:
            self._tasks.put(None)
        deadline = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, worker: Worker) -> None:
        while (item := self._tasks.get()) is not None:
            self._do(*item, worker)
            del item    # a waiting thread must not keep the last row's tiles alive

    @staticmethod
    def _do(future: Future, task: Callable[[Worker], object], worker: Worker) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(task(worker))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to whoever waits for the result
            future.set_exception(error)
        finally:
            worker.rest()
