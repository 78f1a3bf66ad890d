"""A server around a generator whose answers are known, and small ways to ask it."""

import asyncio
import base64
import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web
from PIL import Image

from nvlm_train.config.schema import Connector, Data, Language, Model, Vision
from nvlm_train.config.serving import Serve
from nvlm_train.data.encode import Encoder
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.generation.request import LENGTH, STOP, News, Request
from nvlm_train.serving.app import make_app
from nvlm_train.serving.completions import House
from nvlm_train.serving.desk import Desk
from nvlm_train.serving.page import read_page
from nvlm_train.serving.problems import Refusal
from nvlm_train.serving.worker import Inbox, Worker

TOKENIZER = load_tokenizer("tiny")
MODEL = Model(vision=Vision(tile_size=32, patch=8), connector=Connector(), language=Language(vocab=1024))
ENCODER = Encoder(MODEL, Data(format="chat", max_tokens=480, pack_tokens=512, max_tiles=6, pack_tiles=16), TOKENIZER)
LIMITS = Serve(slots=4, max_waiting=4, max_new_tokens=100, max_images=3, max_pixels=1_000_000, max_body_mb=1, timeout_s=20)
NAME = "toy"


def png(width: int = 64, height: int = 32, color: str = "red", kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), color).save(out, kind)
    return out.getvalue()


def address(data: bytes, media: str = "image/png") -> str:
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def shown(data: bytes, media: str = "image/png") -> dict:
    return {"type": "image_url", "image_url": {"url": address(data, media)}}


def user(content, **more) -> dict:
    return {"messages": [{"role": "user", "content": content}], **more}


class Scripted:
    """A generator that answers every prompt with what `script` says of it, a token a round; the rounds wait for `gate`.

    Like the real one it runs `slots` requests at a time. seen: requests as they were submitted; cancelled: ids.
    """

    def __init__(self, script: Callable[[Request], str], slots: int = 4, pause_s: float = 0.0):
        self.encoder, self.slots, self.pause_s, self.script = ENCODER, slots, pause_s, script
        self.gate = threading.Event()
        self.gate.set()
        self.seen: list[Request] = []
        self.cancelled: list[str] = []
        self._waiting: list[Request] = []
        self._running: dict[str, tuple[Request, list[int], int]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def submit(self, request: Request) -> None:
        self.seen.append(request)
        self._waiting.append(request)

    def cancel(self, id: str) -> None:
        self.cancelled.append(id)
        self._running.pop(id, None)
        self._waiting = [request for request in self._waiting if request.id != id]

    def step(self) -> list[News]:
        time.sleep(self.pause_s)
        if not self.gate.wait(0.01):
            return []
        while self._waiting and len(self._running) < self.slots:
            request = self._waiting.pop(0)
            self._running[request.id] = (request, [*TOKENIZER.encode(self.script(request)), TOKENIZER.eos_id], 0)
        return [self._news(*each) for each in list(self._running.values())]

    def _news(self, request: Request, answer: list[int], at: int) -> News:
        token = answer[at]
        closed = token == TOKENIZER.eos_id
        finish = STOP if closed else LENGTH if at + 1 == request.sampling.max_new_tokens else None
        self._running[request.id] = (request, answer, at + 1)
        if finish:
            del self._running[request.id]
        return News(request.id, None if closed else token, finish, 0.001 if at == 0 else None)


@dataclass
class Served:
    """A running server. ended: what the model's thread ended with, once it has."""

    port: int
    house: House
    generator: Scripted
    inbox: Inbox
    ended: list = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, body: dict | bytes, path: str = "/v1/chat/completions", timeout: float = 20, **headers: str):
        """(status, the body as JSON, headers) of a POST."""
        connection = self.connection(timeout)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, content, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        read = response.read()
        connection.close()
        return response.status, json.loads(read), dict(response.headers)

    def get(self, path: str, **headers: str):
        """(status, body, headers) of a GET."""
        connection = self.connection(20)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        read = response.read()
        connection.close()
        return response.status, read, dict(response.headers)

    def events(self, body: dict) -> list:
        """The events of a streamed answer, "[DONE]" among them."""
        connection = self.connection(20)
        connection.request("POST", "/v1/chat/completions", json.dumps({"stream": True, **body}), {"Content-Type": "application/json"})
        response = connection.getresponse()
        read = response.read().decode()
        connection.close()
        assert response.status == 200, read
        assert read.endswith("\n\n")
        words = [event.removeprefix("data: ") for event in read[:-2].split("\n\n")]
        return [word if word == "[DONE]" else json.loads(word) for word in words]

    def connection(self, timeout: float) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)


@contextmanager
def served(generator: Scripted, limits: Serve = LIMITS, key: str | None = None, blind: str | None = None) -> Iterator[Served]:
    """A server in a thread of this process, as `nvlm serve` puts it together, until the block ends."""
    loop, inbox = asyncio.new_event_loop(), Inbox()
    thread = threading.Thread(target=loop.run_forever, name="server", daemon=True)
    thread.start()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(20)

    async def start() -> tuple[web.AppRunner, House, int]:
        house = House(NAME, limits, ENCODER, Desk(inbox, loop), ThreadPoolExecutor(2), key, blind)
        runner = web.AppRunner(make_app(house, read_page()), handler_cancellation=True, access_log=None, auto_decompress=False,
                               shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, house, runner.addresses[0][1]

    runner, house, port = run(start())
    up = Served(port, house, generator, inbox)

    def ended(problem: BaseException | None) -> None:
        up.ended.append(problem)
        if problem:
            house.desk.fail(Refusal("the model has failed", None, "internal_error", 500))

    worker = Worker(inbox, lambda: (generator, lambda orders: orders), house.desk.deliver, ended)
    worker.start()
    try:
        yield up
    finally:
        generator.gate.set()
        inbox.stop()
        worker.join(20)
        run(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        house.pool.shutdown()
        loop.close()
        assert not worker.is_alive() and not thread.is_alive()


def wait_until(holds: Callable[[], bool], limit_s: float = 10) -> None:
    until = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.005)
