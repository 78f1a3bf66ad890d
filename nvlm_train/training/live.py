"""The live view: a panel on the terminal that is kept up to date by a thread of its own. Main rank only."""

import logging
import os
import threading
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.panel import Panel

from nvlm_train.redaction import RedactingFormatter, of_environment
from nvlm_train.training.metrics import Sink, StepRecord
from nvlm_train.training.panel import panel
from nvlm_train.training.preemption import to_stderr
from nvlm_train.training.progress import told
from nvlm_train.training.watched import Watched

A_SECOND = 4        # times that the panel is drawn


class LiveView(Sink):
    """Shows a stage from its first step until `close`; the last frame stays.

    Meanwhile log lines that would go to a terminal are shown as news inside the panel instead of tearing it. News that no longer fit
    are printed above it, and so stay readable too.
    """

    def __init__(self, watched: Watched, console: Console) -> None:
        self._watched, self._console = watched, console
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._news = _News(self)
        self._muted: list[logging.Handler] = []

    def step(self, record: StepRecord) -> None:
        with self._lock:
            self._watched.step(record.row)
        self._start()
        if record.row["skipped"]:
            self.tell(f"step {record.row['step']:,}: loss or gradient not finite, the update was skipped")
        if record.row["refused"]:
            reasons = ", ".join(sorted({slot.refused for slot in record.slots if slot.refused is not None}))
            self.tell(f"step {record.row['step']:,}: {record.row['refused']} samples refused ({reasons})")

    def evaluation(self, row: dict) -> None:
        with self._lock:
            self._watched.validation = row

    def scored(self, row: dict, shown: Sequence[dict]) -> None:
        self.tell(told(row))

    def examples(self, stage: str, step: int, rows: Sequence[dict]) -> None:
        with self._lock:
            self._watched.answered(step, rows)

    def saved(self, stage: str, step: int, seconds: float) -> None:
        with self._lock:
            self._watched.saved = (step, seconds)

    def stopping(self, text: str) -> None:
        """Shown with the next frame. Safe in a signal handler: takes no lock, and prints only where no panel could be torn."""
        self._watched.stopping = text
        if self._live is None:
            to_stderr(text)

    def tell(self, text: str) -> None:
        """News; from any thread."""
        with self._lock:
            gone = self._watched.happened(f"{time.strftime('%H:%M:%S')}  {text}")
        for line in gone:   # not under the lock: the drawing thread holds the console's while it waits for ours
            self._console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        root = logging.getLogger()
        root.removeHandler(self._news)
        for handler in self._muted:
            root.addHandler(handler)
        self._muted = []
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _start(self) -> None:
        if self._live is not None:
            return
        root = logging.getLogger()
        self._muted = [handler for handler in root.handlers if _shows_on_terminal(handler)]
        for handler in self._muted:
            root.removeHandler(handler)
        root.addHandler(self._news)
        self._live = Live(get_renderable=self._frame, console=self._console, refresh_per_second=A_SECOND)
        self._live.start()

    def _frame(self) -> Panel:
        with self._lock:
            return panel(self._watched, self._console.width)


class _News(logging.Handler):
    """Log lines for a view, without secrets."""

    def __init__(self, view: LiveView) -> None:
        super().__init__()
        self._view = view
        self.setFormatter(RedactingFormatter("%(message)s", of_environment(os.environ)))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._view.tell(self.format(record))
        except Exception:  # noqa: BLE001 (as every handler: a line that cannot be told must not end what told it)
            self.handleError(record)


def _shows_on_terminal(handler: logging.Handler) -> bool:
    stream = getattr(handler, "stream", None)
    return isinstance(handler, logging.StreamHandler) and stream is not None and stream.isatty()
