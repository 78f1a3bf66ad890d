"""Between the model's thread and the coroutines that answer clients: requests one way, their news the other."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from nvlm_train.generation.request import STOP, News, Request
from nvlm_train.generation.text_stream import TextStream
from nvlm_train.serving.problems import Refusal
from nvlm_train.serving.worker import Inbox, Refused


@dataclass(frozen=True)
class Ended:
    """How an answer ended.

    finish: `stop` or `length`. tokens: of the answer, the one that closed it not counted. rounds: that brought a token of any kind.

    Seconds: wait_s before its prompt was read, read_s reading it, pictures included, write_s from the first token to the last.
    """

    finish: str
    tokens: int
    rounds: int
    wait_s: float
    read_s: float
    write_s: float


class Desk:
    """Belongs to the event loop; only `deliver` and `fail` may be called from other threads."""

    def __init__(self, inbox: Inbox, loop: asyncio.AbstractEventLoop):
        self._inbox, self._loop = inbox, loop
        self._waiting: dict[str, asyncio.Queue[News | Refused | Refusal]] = {}
        self._failure: Refusal | None = None

    def deliver(self, told: Sequence[News | Refused]) -> None:
        """Hand a round's news to whom it is for; what nobody waits for any more is dropped."""
        self._call(self._hand_out, [(each.id, each) for each in told])

    def fail(self, refusal: Refusal) -> None:
        """Answer everybody who waits, and whoever still comes, with this."""
        self._call(self._fail, refusal)

    async def answer(self, request: Request, stops: Sequence[str],
                     decode: Callable[[Sequence[int]], str]) -> AsyncIterator[str | Ended]:
        """The pieces of the answer's text as they come, then how it ended. Raises Refusal.

        Left early, by whatever exception, the request is cancelled in the generator.
        """
        news: asyncio.Queue[News | Refused | Refusal] = asyncio.Queue()
        self._waiting[request.id] = news
        if self._failure:
            news.put_nowait(self._failure)
        self._inbox.submit(request)
        running, text, clock, tokens, finish = True, TextStream(decode, stops), _Clock(), 0, None
        try:
            while finish is None:
                step = await news.get()
                if not isinstance(step, News):
                    raise step if isinstance(step, Refusal) else Refusal(step.problem, "messages", "context_length_exceeded")
                running, finish = step.finish is None, step.finish
                clock.tick(step.read_s)
                if step.token is not None:
                    tokens += 1
                    if piece := text.push(step.token):
                        yield piece
                if text.stopped:
                    finish = STOP
            if piece := text.finish():
                yield piece
            yield Ended(STOP if text.stopped else finish, tokens, clock.ticks, *clock.seconds())
        finally:
            del self._waiting[request.id]
            if running:
                self._inbox.cancel(request.id)

    def _call(self, function: Callable, value: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, value)
        except RuntimeError:    # the loop has ended, and nobody waits any more
            pass

    def _hand_out(self, told: list[tuple[str, News | Refused]]) -> None:
        for id, each in told:
            if id in self._waiting:
                self._waiting[id].put_nowait(each)

    def _fail(self, refusal: Refusal) -> None:
        self._failure = refusal
        for news in self._waiting.values():
            news.put_nowait(refusal)


class _Clock:
    """When a request was handed over, and when its tokens came."""

    def __init__(self) -> None:
        self._handed_over = self._last = time.monotonic()
        self._first: float | None = None
        self._read_s = 0.0
        self.ticks = 0

    def tick(self, read_s: float | None) -> None:
        self.ticks += 1
        self._last = time.monotonic()
        if self._first is None:
            self._first = self._last
        self._read_s += read_s or 0.0

    def seconds(self) -> tuple[float, float, float]:
        """(waited, read, wrote)."""
        first = self._last if self._first is None else self._first
        return max(0.0, first - self._handed_over - self._read_s), self._read_s, self._last - first
