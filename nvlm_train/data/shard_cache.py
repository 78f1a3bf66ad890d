"""Whole shards of remote folders on a local disk, within a limit, shared by all processes of a node.

A file is named by the SHA-256 of its content, and appears by rename once that is verified, so what is there is right, whichever
folder it came from. Whoever holds the lock of a file that is being fetched fetches it; the others go on without. When there is no
room, what was read longest ago goes first. Losing any of it costs time only.
"""

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from nvlm_train.data.index import ShardEntry
from nvlm_train.data.storage import pread
from nvlm_train.errors import DataError

log = logging.getLogger(__name__)

_PART = ".part"


def default_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nvlm_train"


class ShardCache:
    """A folder of shards, at most `limit` bytes. Safe in several threads and processes.

    keep: SHA-256s that are not to be given up for others, since they are about to be read.
    """

    def __init__(self, folder: Path | None = None, limit: int = 0):
        self.folder, self.limit = folder or default_folder(), limit
        self.keep: frozenset[str] = frozenset()
        self._shards = self.folder / "shards"
        self._off = limit <= 0

    def read(self, shard: ShardEntry, offset: int, size: int) -> bytes | None:
        """Bytes of a shard, None if it is not here."""
        if self._off:
            return None
        path = self._shards / shard.sha256
        try:
            # Not kept open: a descriptor would hold the disk space of a shard that has been given up.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            os.utime(descriptor)
            data = pread(descriptor, offset, size)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return data if len(data) == size else None

    def has(self, shard: ShardEntry) -> bool:
        return not self._off and (self._shards / shard.sha256).exists()

    def forget(self, shard: ShardEntry) -> None:
        """Give up a shard whose bytes turned out to be wrong."""
        (self._shards / shard.sha256).unlink(missing_ok=True)

    def store(self, shard: ShardEntry, content: Callable[[], Iterable[bytes]]) -> bool:
        """Keep a shard, whose bytes `content` gives in order. False if it is not kept: another process is at it, or there is no room.

        Raises DataError if the bytes are not those of the index; and whatever `content` raises.
        """
        if self._off or self.has(shard):
            return not self._off
        try:
            with self._part(shard) as file:
                if file is None:
                    return False
                digest = hashlib.sha256()
                for chunk in content():
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                if digest.hexdigest() != shard.sha256:
                    raise DataError(f"{shard.name} came with the SHA-256 {digest.hexdigest()}, its index says {shard.sha256}")
                os.replace(self._part_of(shard), self._shards / shard.sha256)
        except OSError as error:
            self._off = True
            log.warning("shards are no longer kept in %s: %s. Reading goes on without", self._shards, error.strerror or error)
            return False
        return True

    def _part_of(self, shard: ShardEntry) -> Path:
        return self._shards / f"{shard.sha256}{_PART}"

    @contextmanager
    def _part(self, shard: ShardEntry) -> Iterator[BinaryIO | None]:
        """A locked file for a shard, its space set aside; removed if it does not become the shard. None: not now."""
        path = self._part_of(shard)
        self._shards.mkdir(parents=True, exist_ok=True)
        with open(self._shards / ".lock", "w") as everybody:
            fcntl.flock(everybody, fcntl.LOCK_EX)
            if self.has(shard) or _is_locked(path) or not self._make_room(shard.size):
                yield None
                return
            file = open(path, "wb")  # noqa: SIM115 - closed below, after the common lock is let go
            fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(shard.size)     # counts as taken from now on
        with file:
            try:
                yield file
            finally:
                path.unlink(missing_ok=True)

    def _make_room(self, size: int) -> bool:
        """Remove what was read longest ago until `size` bytes more fit into the limit. Called under the common lock."""
        found = []
        for path in self._shards.iterdir():
            if path.suffix == _PART and not _is_locked(path):
                path.unlink(missing_ok=True)    # whoever fetched it died
            elif path.name != ".lock":
                with suppress(FileNotFoundError):       # just now it became a shard, or was forgotten
                    about = path.stat()
                    found.append((about.st_mtime_ns, about.st_size, path))
        excess = sum(taken for _, taken, _ in found) + size - self.limit
        may_go = sorted(entry for entry in found if entry[2].suffix != _PART and entry[2].name not in self.keep)
        if excess > sum(taken for _, taken, _ in may_go):
            return False
        for _, taken, path in may_go:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= taken
        return True


def _is_locked(path: Path) -> bool:
    """Whether a living process is fetching this file."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
