"""`nvlm serve`: from a checkpoint to an address, and down again without losing an answer."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from nvlm_train.config.schema import Run
from nvlm_train.config.serving import Serve
from nvlm_train.errors import ConfigError, NvlmError, first_line
from nvlm_train.evaluation.opening import Model
from nvlm_train.generation.generator import Generator
from nvlm_train.serving.app import make_app
from nvlm_train.serving.completions import House
from nvlm_train.serving.desk import Desk
from nvlm_train.serving.opening import is_main, mirror, open_generator, refuse_copies
from nvlm_train.serving.page import read_page
from nvlm_train.serving.problems import Refusal
from nvlm_train.serving.worker import Inbox, Share, Worker

log = logging.getLogger(__name__)

KEY_VARIABLE = "NVLM_API_KEY"
PREPARERS = 4           # threads that decode pictures: one that is slow at it leaves three
ROUND_S = 60.0          # for the round that is being made
LAST_WORDS_S = 3.0      # for telling those who still wait that nothing comes


def serve_command(runs: Sequence[Run], checkpoint: str, limits: Serve) -> None:
    """Serve until a signal says to stop. Every rank calls it.

    Raises ConfigError: copies of the model, no address, no key; NvlmError: the model failed, or is not there yet, or hangs.
    """
    refuse_copies(runs)
    if not is_main():
        mirror(runs, checkpoint, limits.slots)
        return
    key = read_key(limits.api_key_file, os.environ.get(KEY_VARIABLE))
    # Before minutes of loading: a port that is taken should be said at once.
    with _bound(limits.host, limits.port) as listening:
        if key is None and not _is_loopback(listening):
            log.warning("whoever reaches %s may ask this model: serve.api_key_file or $%s would want a key", _address(listening),
                        KEY_VARIABLE)
        asyncio.run(Server(runs, checkpoint, limits, key, listening).run())


def read_key(path: str | None, variable: str | None) -> str | None:
    """The key that clients must show; None: there is none. Raises ConfigError for a file that holds nothing."""
    if path is None:
        return variable or None
    try:
        key = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"serve.api_key_file={path}: cannot be read ({first_line(error)})") from error
    if not key:
        raise ConfigError(f"serve.api_key_file={path} is empty: write the key that clients must show into it")
    return key


class Server:
    """The main rank's event loop: it waits for the model, serves, and goes down in order."""

    def __init__(self, runs: Sequence[Run], checkpoint: str, limits: Serve, key: str | None, listening: socket.socket):
        self._runs, self._checkpoint, self._limits, self._key, self._listening = runs, checkpoint, limits, key, listening
        self._inbox, self._stop, self._hurry = Inbox(), asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        self._desk = Desk(self._inbox, loop)
        self._opened: asyncio.Future[Model] = loop.create_future()
        self._ended: asyncio.Future[BaseException | None] = loop.create_future()
        Worker(self._inbox, self._open, self._desk.deliver, self._end).start()
        if await self._first(self._opened):
            await self._serve(self._opened.result())
        elif self._ended.done() and (problem := self._ended.result()):
            raise problem
        else:   # its thread goes down with the process: it cannot be asked to stop within its loading
            raise NvlmError("told to stop before the model was loaded")

    # -- of the model's thread ----------------------------------------------------------------------------------------

    def _open(self) -> tuple[Generator, Share]:
        model, generator, share = open_generator(self._runs, self._checkpoint, self._limits.slots)
        self._opened.get_loop().call_soon_threadsafe(self._opened.set_result, model)
        return generator, share

    def _end(self, problem: BaseException | None) -> None:
        with suppress(RuntimeError):    # nobody waits for it any more
            self._ended.get_loop().call_soon_threadsafe(self._ended.set_result, problem)

    # -- of the event loop --------------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()

    async def _first(self, wanted: asyncio.Future) -> bool:
        """Whether it came before a signal and before the model's thread ended."""
        stop = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({wanted, self._ended, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        return wanted.done() and not self._ended.done()

    async def _serve(self, model: Model) -> None:
        with ThreadPoolExecutor(PREPARERS, "pictures") as pool:
            name = self._limits.name or model.run.recipe
            house = House(name, self._limits, model.encoder, self._desk, pool, self._key, model.blind)
            # Compressed bodies are not unpacked: they would grow past the limits. Access is counted, not logged.
            runner = web.AppRunner(make_app(house, read_page()), handle_signals=False, handler_cancellation=True, access_log=None,
                                   auto_decompress=False, shutdown_timeout=LAST_WORDS_S)
            logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)      # malformed requests: the sender is told
            await runner.setup()
            try:
                await web.SockSite(runner, self._listening).start()
                log.info("%s is served at %s (Ctrl-C stops)", house.name, _address(self._listening))
                await self._first(asyncio.get_running_loop().create_future())
                await self._go_down(house)
            finally:
                await runner.cleanup()

    async def _go_down(self, house: House) -> None:
        """Let what runs finish, send new requests away, then stop the model's thread on all ranks. Raises NvlmError: it had failed."""
        house.closing = True
        if not self._ended.done():
            log.info("stopping: %d requests have %g s to finish", house.counters.in_flight, self._limits.drain_s)
            hurry = asyncio.ensure_future(self._hurry.wait())
            idle = asyncio.ensure_future(house.idle.wait())
            await asyncio.wait({idle, hurry, self._ended}, timeout=self._limits.drain_s, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            idle.cancel()
        failed = self._ended.result() if self._ended.done() else None
        self._desk.fail(Refusal("the model has failed, and the server goes down", None, "internal_error", 500) if failed else
                        Refusal("the server goes down, and this answer was not ready in time", None, "server_stopping", 503))
        with suppress(TimeoutError):
            await asyncio.wait_for(house.idle.wait(), LAST_WORDS_S)
        if failed:
            raise NvlmError("the model has failed, and the server went down with it: "
                            f"{type(failed).__name__}: {first_line(failed)}") from failed
        self._inbox.stop()
        try:
            await asyncio.wait_for(asyncio.shield(self._ended), ROUND_S)
        except TimeoutError:
            raise NvlmError(f"the model's last round did not end within {ROUND_S:g} s: a rank may hang") from None


def _bound(host: str, port: int) -> socket.socket:
    """Raises ConfigError: there is no such address, or somebody else has the port."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        raise ConfigError(f"serve.host={host} serve.port={port}: cannot listen there ({error.strerror or error}); serve.port=0 "
                          "takes any free port") from error
    return made


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(listening: socket.socket) -> bool:
    host = listening.getsockname()[0]
    return host == "::1" or host.startswith("127.")
