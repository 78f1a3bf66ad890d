"""How far a long copy is: a bar on a terminal, a line every few seconds elsewhere. On stderr, since results go to stdout."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from nvlm_train.engine.folders import as_size

EVERY_S = 5.0

log = logging.getLogger(__name__)


@contextmanager
def progress(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function to be told of bytes that are done. total: bytes of all."""
    if sys.stderr.isatty():
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(doing, total=total)
            yield lambda count: bar.advance(task, count)
        return
    lines = _Lines(doing, total)
    yield lines.add
    lines.end()


class _Lines:
    def __init__(self, doing: str, total: int):
        self._doing, self._total, self._done = doing, total, 0
        self._began = self._told = time.monotonic()

    def add(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._told >= EVERY_S:
            self._told = now
            rate = self._done / (now - self._began)
            log.info("%s: %s of %s, %s/s, %.0f s left", self._doing, as_size(self._done), as_size(self._total), as_size(rate),
                     (self._total - self._done) / rate)

    def end(self) -> None:
        took = time.monotonic() - self._began
        log.info("%s: %s in %.0f s", self._doing, as_size(self._done), took)
