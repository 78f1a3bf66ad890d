"""POST /v1/chat/completions: admit, read, prepare in a thread, answer whole or as server-sent events."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field, replace

from aiohttp import web

from nvlm_train.config.serving import Serve
from nvlm_train.data.encode import Encoder
from nvlm_train.generation.request import Request
from nvlm_train.serving.answers import Answer, event
from nvlm_train.serving.asked import Asked, read_asked
from nvlm_train.serving.counters import Counters
from nvlm_train.serving.desk import Desk, Ended
from nvlm_train.serving.problems import Refusal
from nvlm_train.serving.prompts import Prompt, prepare

log = logging.getLogger(__name__)

CLIENT_LEFT = 499


def _set_event() -> asyncio.Event:
    made = asyncio.Event()
    made.set()
    return made


@dataclass
class House:
    """What all requests share. pool: threads that decode and encode. blind: why the model cannot be asked about pictures.

    closing: new requests are sent away. idle: set while none is being answered.
    """

    name: str
    limits: Serve
    encoder: Encoder
    desk: Desk
    pool: ThreadPoolExecutor
    key: str | None = None
    blind: str | None = None
    closing: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    counters: Counters = field(default_factory=Counters)
    idle: asyncio.Event = field(default_factory=_set_event)

    @contextmanager
    def admitted(self):
        """A place for one request. Raises Refusal: closing, or no place left."""
        room = self.limits.slots + self.limits.max_waiting
        if self.closing:
            raise Refusal("the server is going down: ask again, or ask another", None, "server_stopping", 503, retry_after_s=5)
        if self.counters.in_flight >= room:
            raise Refusal(f"{room} requests are being answered or wait (serve.slots, serve.max_waiting): ask again in a second", None,
                          "too_many_requests", 429, retry_after_s=1)
        self.counters.in_flight += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.counters.in_flight -= 1
            if not self.counters.in_flight:
                self.idle.set()


async def complete(house: House, request: web.Request) -> web.StreamResponse:
    """The handler. Whatever goes wrong is answered in OpenAI's form, inside the stream once that has begun."""
    streamed: list[web.StreamResponse] = []     # the response, once a stream has begun
    try:
        try:
            with house.admitted():
                async with asyncio.timeout(house.limits.timeout_s):
                    response = await _answered(house, request, streamed)
        except TimeoutError:
            raise Refusal(f"not answered within {house.limits.timeout_s:g} s (serve.timeout_s): ask for less, or again later", None,
                          "timeout", 504) from None
        except (asyncio.CancelledError, ConnectionError):
            house.counters.answers[CLIENT_LEFT] += 1
            raise
        except Refusal:
            raise
        except Exception as error:
            log.exception("a request failed")
            raise Refusal("the server failed on this request", None, "internal_error", 500) from error
    except Refusal as refusal:
        house.counters.answers[refusal.status] += 1
        if not streamed:
            raise
        return await _end_broken(streamed[0], refusal)
    house.counters.answers[200] += 1
    return response


async def _answered(house: House, request: web.Request, streamed: list[web.StreamResponse]) -> web.StreamResponse:
    body = await _body(request, house.limits)
    id = f"chatcmpl-{secrets.token_hex(12)}"
    asked, prompt = await asyncio.get_running_loop().run_in_executor(house.pool, _read, house, body, id)
    del body
    answer = Answer(id, house.name, int(time.time()), asked, prompt)
    order = Request(id, prompt.encoded, asked.sampling(prompt.max_new_tokens))
    async with aclosing(house.desk.answer(order, asked.stops, house.encoder.tokenizer.decode)) as pieces:
        if not asked.stream:
            return await _whole(house, answer, pieces)
        return await _streamed(house, request, answer, pieces, streamed)


def _read(house: House, body: bytes, id: str) -> tuple[Asked, Prompt]:
    """In a thread of the pool: one large picture holds up nobody else."""
    asked = read_asked(body, house.limits, house.name)
    if house.blind and any(isinstance(part, bytes) for message in asked.messages for part in message.parts):
        raise Refusal(house.blind, "messages", "no_pictures")
    prompt = prepare(asked, house.encoder, house.limits, id)
    return replace(asked, messages=[]), prompt      # the pictures' bytes are tiles by now


async def _body(request: web.Request, limits: Serve) -> bytes:
    if request.content_type != "application/json":     # which also keeps other sites' pages from asking behind a person's back
        raise Refusal(f"send Content-Type: application/json, not {request.content_type[:80]!r}", None, "unsupported_media_type", 415)
    most = int(limits.max_body_mb * 2**20)
    too_large = Refusal(f"the body is larger than {limits.max_body_mb:g} MiB (serve.max_body_mb)", None, "request_too_large", 413)
    if (request.content_length or 0) > most:
        raise too_large
    try:
        return await request.read()     # counts what comes, and ends at client_max_size
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None


async def _whole(house: House, answer: Answer, pieces: AsyncIterator[str | Ended]) -> web.Response:
    texts: list[str] = []
    async for piece in pieces:
        if isinstance(piece, str):
            texts.append(piece)
        else:
            _count(house, answer, piece)
            return web.json_response(answer.whole("".join(texts), piece))
    raise RuntimeError("an answer ended without saying how")


async def _streamed(house: House, request: web.Request, answer: Answer, pieces: AsyncIterator[str | Ended],
                    streamed: list[web.StreamResponse]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store",
                                           "X-Accel-Buffering": "no"})
    streamed.append(response)
    await response.prepare(request)
    await response.write(answer.opening())
    async for piece in pieces:
        if isinstance(piece, Ended):
            _count(house, answer, piece)
            await response.write(answer.closing(piece))
        else:
            await response.write(answer.piece(piece))
    await response.write_eof()
    return response


async def _end_broken(response: web.StreamResponse, refusal: Refusal) -> web.StreamResponse:
    """An event with the error; no [DONE], which would say that the answer is whole."""
    with suppress(ConnectionError, TimeoutError):   # a client that does not read
        async with asyncio.timeout(5):
            await response.write(event(refusal.body))
            await response.write_eof()
    return response


def _count(house: House, answer: Answer, ended: Ended) -> None:
    counters = house.counters
    counters.read_tokens += answer.prompt.encoded.length
    counters.written_tokens += ended.tokens
    counters.seconds.update(answer.timings(ended)["seconds"])
