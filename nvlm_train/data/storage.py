"""Where the files of a folder of shards lie, and how bytes are read from the middle of one. Here: on a file system.

`remote` has the same for object stores and web servers.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from nvlm_train.data.index import ShardEntry
from nvlm_train.errors import DataError

OPEN_FILES = 128   # descriptors kept per folder; clusters often allow a process 1,024 in all


class Storage(Protocol):
    """A folder of shards. Safe in several threads.

    name:   path or URL, for messages
    beside: local folder with the small files that lie beside the shards (indexes, counts), or with copies of them
    remote: a read takes a network's time and may bring damaged bytes once; worth asking again, and ahead
    """

    name: str
    beside: Path
    remote: bool

    def sizes(self, names: Sequence[str]) -> Mapping[str, int | None]:
        """Bytes of these files; None where the storage does not tell. Raises DataError naming one that cannot be read."""

    def bring(self, names: Sequence[str], again: bool = False) -> None:
        """See that these small files are `beside`, those that exist. again: even if they are there already."""

    def read_at(self, shard: ShardEntry, offset: int, size: int) -> bytes:
        """Exactly these bytes of a shard. Raises DataError."""

    def start(self, shard: ShardEntry, offset: int, size: int, fresh: bool = False) -> Callable[[], bytes]:
        """Begin to read, so that several reads take the time of one where that helps; the result gives the bytes as `read_at` does.
        fresh: from the origin, since a copy turned out to be wrong."""

    def expect(self, shards: Sequence[ShardEntry]) -> None:
        """Shards that will be read next, the first ones first: a hint."""

    def close(self) -> None:
        """End what works in the background."""


class _File:
    """A descriptor that closes when the last reader lets go of it, so that evicting one in use is safe."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def pread(descriptor: int, offset: int, size: int) -> bytes:
    """Bytes at an offset, fewer only at the end of the file. Raises OSError."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data


class LocalFolder:
    """A folder on a file system, local or mounted."""

    remote = False

    def __init__(self, path: Path):
        self.name, self.beside = str(path), path
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()

    def sizes(self, names: Sequence[str]) -> dict[str, int | None]:
        sizes: dict[str, int | None] = {}
        for name in names:
            try:
                sizes[name] = (self.beside / name).stat().st_size
            except OSError as error:
                raise DataError(f"shard {self.beside / name} is in the index and cannot be read: {error.strerror}") from error
        return sizes

    def bring(self, names: Sequence[str], again: bool = False) -> None:
        pass

    def expect(self, shards: Sequence[ShardEntry]) -> None:
        pass

    def close(self) -> None:
        pass

    def start(self, shard: ShardEntry, offset: int, size: int, fresh: bool = False) -> Callable[[], bytes]:
        return partial(self.read_at, shard, offset, size)

    def read_at(self, shard: ShardEntry, offset: int, size: int) -> bytes:
        try:
            file = self._file(shard.name)       # held until the bytes are there
            data = pread(file.descriptor, offset, size)
        except OSError as error:
            raise DataError(f"shard {self.beside / shard.name} cannot be read at byte {offset:,}: {error.strerror}") from error
        if len(data) != size:
            raise DataError(f"shard {self.beside / shard.name} ends before byte {offset + size:,}, which its index names: it was "
                            "truncated while in use")
        return data

    def _file(self, name: str) -> _File:
        with self._lock:
            if name in self._files:
                self._files.move_to_end(name)
                return self._files[name]
        file = _File(self.beside / name)   # outside the lock: opening may stall on a network file system
        with self._lock:
            self._files[name] = file
            while len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        return file
