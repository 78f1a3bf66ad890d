"""Reads samples out of indexed tar shards: one positioned read each, no walk through the tar, from any thread."""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

from nvlm_train.contracts import Sample
from nvlm_train.data import index as index_files
from nvlm_train.data.index import ShardEntry, ShardIndex
from nvlm_train.data.records import read_record
from nvlm_train.data.remote import open_storage
from nvlm_train.data.shard_cache import ShardCache
from nvlm_train.errors import DataError, SampleRefused

CHANGED = "changed_bytes"   # why a sample is refused that is not what was indexed
_CHUNK = 8 << 20
_AHEAD = 32        # records of a remote folder that are asked for at once
_GAP = 1 << 16     # members no farther apart than this are read at once


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ShardFolder:
    """The samples of one folder, numbered from 0 in index order. Safe in several threads."""

    def __init__(self, path: Path | str, source: str, cache: ShardCache | None = None):
        """path: a local folder, or the URL of a remote one (see `remote`). source: name of this folder in the blend. cache: where
        a remote folder's shards may be kept. Raises DataError: no index, a shard missing, or of another size than indexed."""
        self.storage, self.source = open_storage(path, cache), source
        self.name, self.path = self.storage.name, self.storage.beside
        self.storage.bring([index_files.FOLDER_INDEX], again=True)
        self.entries: list[ShardEntry] = index_files.read_folder_index(self.path, self.name)
        self.storage.bring([index_files.shard_index_name(entry.name) for entry in self.entries])
        self._ends = list(accumulate(entry.samples for entry in self.entries))
        self._indexes: dict[int, ShardIndex] = {}
        sizes = self.storage.sizes([entry.name for entry in self.entries])
        for entry in self.entries:
            self._check_size(entry, sizes[entry.name])

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
            raise IndexError(f"sample {sample} of {len(self)} in {self.name}")
        shard = bisect_right(self._ends, sample)
        return shard, sample - self.first(shard)

    def first(self, shard: int) -> int:
        """Number of a shard's first sample."""
        return self._ends[shard] - self.entries[shard].samples

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
        return f"{self.index(shard).keys[place]} of {self.name}/{self.entries[shard].name}"

    def read(self, sample: int) -> Sample:
        """Read a whole sample and compare it with its hash.

        Raises SampleRefused("changed_bytes") if it is not what was indexed, DataError if the shard cannot be read that far.
        """
        return self.start(sample)()

    def start(self, sample: int) -> Callable[[], Sample]:
        """Begin to read; the result gives the sample, or raises, as `read` does. Several begun at once take the time of one where
        the folder is remote."""
        pending = self._start(sample)
        return partial(self._finish, sample, pending)

    def _start(self, sample: int, fresh: bool = False) -> list[Callable[[], bytes]]:
        shard, place = self.locate(sample)
        members = self._members(shard, place)
        return [self.storage.start(self.entries[shard], offset, size, fresh) for offset, size in _spans(members)]

    def _members(self, shard: int, place: int) -> list[tuple[int, int]]:
        """(offset, size) of the json member, then of the pictures."""
        index = self.index(shard)
        return [tuple(index.records[place].tolist()), *((offset, size) for offset, size, _, _ in index.images_of(place).tolist())]

    def _finish(self, sample: int, pending: list[Callable[[], bytes]]) -> Sample:
        shard, place = self.locate(sample)
        members, expected = self._members(shard, place), self.index(shard).sha256[place].tobytes()
        parts = _cut(members, [read() for read in pending])
        right = _digest(parts) == expected
        if not right and self.storage.remote:      # damaged on its way, or the copy that is kept here is
            parts = _cut(members, [read() for read in self._start(sample, fresh=True)])
            right = _digest(parts) == expected
        if not right:
            raise SampleRefused(CHANGED, f"{self.where(sample)} is not what was indexed (SHA-256 differs): restore the shard, or "
                                         f"index it again with: {index_files.command(self.name)}")
        record, *images = parts
        content = read_record(record)
        return Sample(self.index(shard).keys[place], self.source, tuple(images), content.turns, content.meta)

    def records(self, shard: int) -> Iterator[tuple[int, bytes]]:
        """(place, json member) of every sample of a shard that the index does not refuse, unverified: enough to count text tokens."""
        index, entry = self.index(shard), self.entries[shard]
        places = [place for place in range(entry.samples) if place not in index.refused]
        ahead = _AHEAD if self.storage.remote else 1
        for first in range(0, len(places), ahead):
            some = places[first:first + ahead]
            reads = [self.storage.start(entry, *index.records[place].tolist()) for place in some]
            yield from ((place, read()) for place, read in zip(some, reads, strict=True))

    def read_record(self, sample: int) -> bytes:
        """Only the json member, unverified."""
        shard, place = self.locate(sample)
        return self.storage.read_at(self.entries[shard], *self.index(shard).records[place].tolist())

    def verify(self, progress: Callable[[str], None] = lambda name: None) -> None:
        """Hash every shard whole. Raises DataError naming all that differ. `progress` is told each shard's name when done."""
        wrong = []
        for entry in self.entries:
            digest = hashlib.sha256()
            for offset in range(0, entry.size, _CHUNK):
                digest.update(self.storage.read_at(entry, offset, min(_CHUNK, entry.size - offset)))
            if digest.hexdigest() != entry.sha256:
                wrong.append(f"{self.name}/{entry.name}: SHA-256 is {digest.hexdigest()}, the index says {entry.sha256}")
            progress(entry.name)
        if wrong:
            duty = f"They changed after they were indexed. Restore them, or, if it is meant: {index_files.command(self.name)}"
            raise DataError("\n".join([*wrong, duty]))

    def index(self, shard: int) -> ShardIndex:
        """Index of one shard, read on first use."""
        found = self._indexes.get(shard)
        if found is None:   # two threads may read it at once; both get the same content
            found = self._indexes[shard] = self._read_index(self.entries[shard])
        return found

    def _read_index(self, entry: ShardEntry) -> ShardIndex:
        try:
            return index_files.read_shard_index(self.path, entry, self.name)
        except DataError:
            if not self.storage.remote:
                raise
        self.storage.bring([index_files.shard_index_name(entry.name)], again=True)      # the copy may be of another version
        return index_files.read_shard_index(self.path, entry, self.name)

    def close(self) -> None:
        """End what works in the background. Reading goes on to work."""
        self.storage.close()

    def _check_size(self, entry: ShardEntry, size: int | None) -> None:
        if size not in (entry.size, None):
            state = "truncated" if size < entry.size else "changed"
            raise DataError(f"shard {self.name}/{entry.name} is {state}: {size:,} bytes, its index says {entry.size:,}. Restore it, or, if "
                            f"the change is meant, index again with: {index_files.command(self.name)}")


def _spans(members: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(offset, size) of the reads that fetch all members: those that lie side by side are read at once."""
    spans: list[tuple[int, int]] = []
    for offset, size in sorted(members):
        if spans and offset - sum(spans[-1]) <= _GAP:
            start = spans[-1][0]
            spans[-1] = (start, max(sum(spans[-1]), offset + size) - start)
        else:
            spans.append((offset, size))
    return spans


def _cut(members: Sequence[tuple[int, int]], read: Sequence[bytes]) -> list[bytes]:
    """The members, out of what was read for their `_spans`."""
    spans = _spans(members)
    starts = [start for start, _ in spans]
    found = []
    for offset, size in members:
        span = bisect_right(starts, offset) - 1
        at = offset - starts[span]
        found.append(read[span][at:at + size])
    return found


def _digest(parts: Sequence[bytes]) -> bytes:
    """What the index holds of a sample: SHA-256 of its json member followed by its pictures."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()
