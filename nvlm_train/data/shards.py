"""Reads samples out of indexed tar shards: one positioned read per member, no walk through the tar, from any thread."""

import hashlib
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from nvlm_train.contracts import Sample
from nvlm_train.data import index as index_files
from nvlm_train.data.index import ShardEntry, ShardIndex
from nvlm_train.data.records import read_record
from nvlm_train.errors import DataError, SampleRefused

CHANGED = "changed_bytes"   # why a sample is refused that is not what was indexed
OPEN_FILES = 128   # descriptors kept per folder; clusters often allow a process 1,024 in all


class _File:
    """A descriptor that closes when the last reader lets go of it, so that evicting one in use is safe."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ShardFolder:
    """The samples of one folder, numbered from 0 in index order. Safe in several threads."""

    def __init__(self, path: Path | str, source: str):
        """source: name of this folder in the blend. Raises DataError: no index, a shard missing, or of another size than indexed."""
        self.path, self.source = Path(path), source
        self.entries: list[ShardEntry] = index_files.read_folder_index(self.path)
        self._ends = list(accumulate(entry.samples for entry in self.entries))
        self._indexes: dict[int, ShardIndex] = {}
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._lock = threading.Lock()
        for entry in self.entries:
            self._check_size(entry)

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names and hashes of all shards: equal fingerprints number the same samples alike."""
        lines = [f"{entry.name} {entry.sha256} {entry.samples}" for entry in self.entries]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def locate(self, sample: int) -> tuple[int, int]:
        """(shard, place in it) of a sample. Raises IndexError."""
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)} in {self.path}")
        shard = bisect_right(self._ends, sample)
        return shard, sample - (self._ends[shard] - self.entries[shard].samples)

    def key(self, sample: int) -> str:
        shard, place = self.locate(sample)
        return self.index(shard).keys[place]

    def image_sizes(self, sample: int) -> list[tuple[int, int]]:
        """(width, height) of the sample's pictures. Raises SampleRefused if the index knows the sample to be unusable."""
        shard, place = self.locate(sample)
        index = self.index(shard)
        if place in index.refused:
            raise index_files.refusal(index.refused[place])
        return [(width, height) for _, _, width, height in index.images_of(place).tolist()]

    def where(self, sample: int) -> str:
        """The sample's key and shard, for messages."""
        shard, place = self.locate(sample)
        return f"{self.index(shard).keys[place]} of {self.path / self.entries[shard].name}"

    def read(self, sample: int) -> Sample:
        """Read a whole sample and compare it with its hash.

        Raises SampleRefused("changed_bytes") if it is not what was indexed, DataError if the shard cannot be read that far.
        """
        shard, place = self.locate(sample)
        index = self.index(shard)
        record = self._read_at(shard, *index.records[place].tolist())
        images = tuple(self._read_at(shard, offset, size) for offset, size, _, _ in index.images_of(place).tolist())
        digest = hashlib.sha256(record)
        for image in images:
            digest.update(image)
        if digest.digest() != index.sha256[place].tobytes():
            raise SampleRefused(CHANGED, f"{self.where(sample)} is not what was indexed (SHA-256 differs): restore the shard, or "
                                                 f"index it again with: {index_files.command(self.path)}")
        content = read_record(record)
        return Sample(index.keys[place], self.source, images, content.turns, content.meta)

    def read_record(self, sample: int) -> bytes:
        """Only the json member, unverified: enough to count text tokens."""
        shard, place = self.locate(sample)
        return self._read_at(shard, *self.index(shard).records[place].tolist())

    def verify(self, progress: Callable[[str], None] = lambda name: None) -> None:
        """Hash every shard whole. Raises DataError naming all that differ. `progress` is told each shard's name when done."""
        wrong = []
        for entry in self.entries:
            found = file_sha256(self.path / entry.name)
            if found != entry.sha256:
                wrong.append(f"{self.path / entry.name}: SHA-256 is {found}, the index says {entry.sha256}")
            progress(entry.name)
        if wrong:
            duty = f"They changed after they were indexed. Restore them, or, if it is meant: {index_files.command(self.path)}"
            raise DataError("\n".join([*wrong, duty]))

    def index(self, shard: int) -> ShardIndex:
        """Index of one shard, read on first use."""
        found = self._indexes.get(shard)
        if found is None:   # two threads may read it at once; both get the same content
            found = self._indexes[shard] = index_files.read_shard_index(self.path, self.entries[shard])
        return found

    def _check_size(self, entry: ShardEntry) -> None:
        path = self.path / entry.name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"shard {path} is in the index and cannot be read: {error.strerror}") from error
        if size != entry.size:
            state = "truncated" if size < entry.size else "changed"
            raise DataError(f"shard {path} is {state}: {size:,} bytes, its index says {entry.size:,}. Restore it, or, if the change is "
                            f"meant, index again with: {index_files.command(self.path)}")

    def _file(self, shard: int) -> _File:
        with self._lock:
            if shard in self._files:
                self._files.move_to_end(shard)
                return self._files[shard]
        file = _File(self.path / self.entries[shard].name)   # outside the lock: opening may stall on a network file system
        with self._lock:
            self._files[shard] = file
            while len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        return file

    def _read_at(self, shard: int, offset: int, size: int) -> bytes:
        try:
            file = self._file(shard)
            data = os.pread(file.descriptor, size, offset)
            while len(data) < size and (more := os.pread(file.descriptor, size - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise DataError(f"shard {self.path / self.entries[shard].name} cannot be read at byte {offset:,}: {error.strerror}") from error
        if len(data) != size:
            raise DataError(f"shard {self.path / self.entries[shard].name} ends before byte {offset + size:,}, which its index names: it was "
                            "truncated while in use")
        return data
