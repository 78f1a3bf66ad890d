"""Folders of shards in object stores and on web servers, through fsspec: byte ranges, asked for again when a request fails or stalls.

Indexes and token counts are copied to a local folder when a folder is opened. Of the shards only the bytes of the samples that are
used travel, unless `ShardCache` has room to keep whole shards: then those that are expected are fetched in the background, and
reading never waits for it.
"""

import asyncio
import hashlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from nvlm_train.data.index import ShardEntry, replacing
from nvlm_train.data.shard_cache import ShardCache
from nvlm_train.data.storage import LocalFolder, Storage
from nvlm_train.errors import DataError

log = logging.getLogger(__name__)

PROTOCOLS = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}     # protocol -> package that fsspec needs for it
TIMEOUT_S = 30.0        # of one request
ATTEMPTS = 5
CHUNK = 8 << 20         # bytes a request, where a whole shard is fetched
_CHUNKS_AHEAD = 4
_FIRST_PAUSE_S = 0.5
_FETCH_AGAIN_S = 30.0   # after a shard could not be fetched whole
_TOGETHER = 16          # small files that are asked for at once


def open_storage(path: Path | str, cache: ShardCache | None = None) -> Storage:
    """A local folder, or a remote one if `path` is a URL. Raises DataError for a protocol that is not spoken."""
    if "://" not in str(path):
        return LocalFolder(Path(path))
    return RemoteFolder(str(path), cache or ShardCache())


class RemoteFolder:
    """A folder of shards behind s3://, gs://, http:// or https://. Credentials and endpoints are those of the protocol's package, from
    its environment variables and files."""

    remote = True

    def __init__(self, url: str, cache: ShardCache):
        """Raises DataError: no such protocol, or its package is not installed."""
        self.name = url.rstrip("/")
        self._cache = cache
        self.beside = cache.folder / "beside" / hashlib.sha256(self.name.encode()).hexdigest()[:16]
        self._files, self._root = _open(self.name)
        self._listed: Mapping[str, int] | None = None
        self._expected: Sequence[ShardEntry] = ()
        self._news = threading.Condition()
        self._fetcher: threading.Thread | None = None
        self._closed = False

    # Small files

    def sizes(self, names: Sequence[str]) -> dict[str, int | None]:
        found = self._list()
        if found is None:
            about = self._together({name: partial(self._files._info, self._at(name)) for name in names}, final=())
            return {name: about[name].get("size") for name in names}
        missing = [name for name in names if name not in found]
        if missing:
            raise DataError(f"shard {self.name}/{missing[0]} is in the index and not in the folder ({len(missing)} of {len(names)} are "
                            "missing): upload it, or index the folder again and upload the new index")
        return {name: found[name] for name in names}

    def bring(self, names: Sequence[str], again: bool = False) -> None:
        self.beside.mkdir(parents=True, exist_ok=True)
        listed = self._list()
        wanted = [name for name in names if again or not (self.beside / name).is_file()]
        wanted = [name for name in wanted if listed is None or name in listed]
        found = self._together({name: partial(self._files._cat_file, self._at(name)) for name in wanted}, absent=True)
        for name in wanted if not again else names:
            content = found.get(name)
            if content is None:
                (self.beside / name).unlink(missing_ok=True)    # a copy of what is not there any more
                continue
            with replacing(self.beside / name) as file:
                file.write(content)

    def _list(self) -> Mapping[str, int] | None:
        """Names and sizes of the folder's files, asked for once; None from a web server, which has no such list."""
        if self._listed is None and not self.name.startswith("http"):
            entries = self._wait(self._start(partial(self._files._ls, self._root, detail=True, refresh=True), self.name))
            self._listed = {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in entries if entry["type"] == "file"}
        return self._listed

    # Shards

    def start(self, shard: ShardEntry, offset: int, size: int, fresh: bool = False) -> Callable[[], bytes]:
        if fresh:
            self._cache.forget(shard)
        kept = self._cache.read(shard, offset, size)
        if kept is not None:
            return lambda: kept
        return partial(self._wait, self._range(shard, offset, size))

    def read_at(self, shard: ShardEntry, offset: int, size: int) -> bytes:
        return self.start(shard, offset, size)()

    def expect(self, shards: Sequence[ShardEntry]) -> None:
        with self._news:
            if self._closed or shards == self._expected:
                return
            self._expected = shards
            self._news.notify()
        if self._fetcher is None:
            self._fetcher = threading.Thread(target=self._fetch_expected, name="nvlm-fetch", daemon=True)
            self._fetcher.start()

    def close(self) -> None:
        with self._news:
            self._closed = True
            self._news.notify()

    def _fetch_expected(self) -> None:
        """Keep every expected shard, in order, as long as the folder is open."""
        failed: dict[str, float] = {}
        while not self._closed:
            now = time.monotonic()
            missing = [shard for shard in self._expected
                       if now - failed.get(shard.name, -_FETCH_AGAIN_S) >= _FETCH_AGAIN_S and not self._cache.has(shard)]
            for shard in missing[:1]:
                try:
                    kept = self._cache.store(shard, partial(self._whole, shard))
                except _Closed:
                    return
                except DataError as error:
                    log.warning("%s: %s. Its samples are read one by one meanwhile", self.name, error)
                    kept = False
                if not kept:
                    failed[shard.name] = time.monotonic()
            if not missing:
                with self._news:
                    self._news.wait(1.0)

    def _whole(self, shard: ShardEntry) -> Iterator[bytes]:
        """A shard's bytes in order, a few requests ahead. Raises _Closed if the folder is closed meanwhile."""
        waiting: deque[Future] = deque()
        for start in range(0, shard.size, CHUNK):
            waiting.append(self._range(shard, start, min(CHUNK, shard.size - start)))
            if len(waiting) == _CHUNKS_AHEAD:
                yield self._wait(waiting.popleft())
            if self._closed:
                raise _Closed
        while waiting:
            yield self._wait(waiting.popleft())

    # Requests

    def _range(self, shard: ShardEntry, offset: int, size: int) -> Future:
        """Exactly these bytes of a shard, asked of the server."""
        request = partial(self._files._cat_file, self._at(shard.name), start=offset, end=offset + size)
        return self._start(partial(_exactly, request, size), f"{self.name}/{shard.name}")

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _start(self, request: Callable[[], Awaitable], url: str, final: tuple[type[Exception], ...] = (FileNotFoundError,)) -> Future:
        return asyncio.run_coroutine_threadsafe(_ask(request, url, final), self._files.loop)

    def _wait(self, future: Future):
        try:
            return future.result(ATTEMPTS * (TIMEOUT_S + _FIRST_PAUSE_S * 2**ATTEMPTS))
        except TimeoutError:
            future.cancel()
            raise DataError(f"{self.name}: its client does not answer; is a name server or a credentials service not reachable?") from None

    def _together(self, requests: Mapping[str, Callable[[], Awaitable]], absent: bool = False,
                  final: tuple[type[Exception], ...] = (FileNotFoundError,)) -> dict:
        """Results by name, a few requests at a time. absent: a file that is not there is None instead of an error."""
        found, names = {}, list(requests)
        for start in range(0, len(names), _TOGETHER):
            batch = {name: self._start(requests[name], f"{self.name}/{name}", final) for name in names[start:start + _TOGETHER]}
            for name, future in batch.items():
                try:
                    found[name] = self._wait(future)
                except _Absent:
                    if not absent:
                        raise
                    found[name] = None
        return found


class _Closed(Exception):
    """Nobody will read from the folder any more."""


class _Absent(DataError):
    """There is no such file."""


class _Incomplete(Exception):
    """Fewer bytes came than were asked for."""


async def _exactly(request: Callable[[], Awaitable[bytes]], size: int) -> bytes:
    data = await request()
    if len(data) > size:
        raise DataError(f"{len(data):,} bytes came where {size:,} were asked for: this server does not answer byte ranges, which reading "
                        "single samples needs. Use another server, or copy the folder")
    if len(data) < size:
        raise _Incomplete(f"{len(data):,} of {size:,} bytes came")
    return data


async def _ask(request: Callable[[], Awaitable], url: str, final: tuple[type[Exception], ...]):
    """A request's result, asked again after failures and silence with growing pauses. Raises DataError."""
    begun = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await asyncio.wait_for(request(), TIMEOUT_S)
        except DataError as error:
            raise DataError(f"{url}: {error}") from error
        except PermissionError as error:
            raise DataError(f"{url}: access denied ({error}). Check the credentials, and the bucket's or server's rules") from error
        except final as error:
            raise _Absent(f"{url} does not exist") from error
        except Exception as error:
            if (status := getattr(error, "status", None)) in (401, 403):
                raise DataError(f"{url}: access denied (HTTP {status}). Check the credentials and the server's rules") from error
            what = f"no answer in {TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
            if attempt == ATTEMPTS:
                raise DataError(f"{url}: {ATTEMPTS} attempts in {time.monotonic() - begun:.0f} s failed, the last with: {what}. Is the "
                                "server up, and reachable from here?") from error
            log.warning("%s: %s; attempt %d of %d follows", url, what, attempt + 1, ATTEMPTS)
            # Not all at once: many readers fail together when a server restarts.
            await asyncio.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1) * (0.5 + random.random()))


def _open(url: str):
    """The protocol's asynchronous file system, and the folder's path in it."""
    protocol = url.split("://", 1)[0]
    package = PROTOCOLS.get(protocol)
    if package is None:
        raise DataError(f"{url}: folders of shards are read from a path, or from {', '.join(f'{name}://' for name in PROTOCOLS)}")
    try:
        from fsspec.core import url_to_fs
        return url_to_fs(url)
    except ImportError as error:
        raise DataError(f"{url} needs the packages fsspec and {package}: pip install 'nvlm-train[remote]' ({error})") from error
