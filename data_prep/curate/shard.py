"""Verb `shard`: several folders become one, shuffled if a seed is given, in shards of even size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_prep.command import existing_folder, parser_of, positive, show_pass
from data_prep.passes import Kept, Outcome, Rejected
from data_prep.shards import LONGEST_KEY
from nvlm_train.data.permutation import key_of, permuted_all
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import DataError, SampleRefused

SAMPLES, MEGABYTES = 10_000, 400    # img2dataset's habit: 10,000 samples, or 100 to 500 MB, a shard
_BLOCK = 512                        # bytes of a tar's header, and what each member is padded to


@dataclass(frozen=True)
class Merged:
    """A source: the samples of several folders, one after the other or shuffled, a shard to write as unit.

    names: one per folder, put before the keys as `name/` if there are several folders. seed: None keeps the order.
    ends: places in the whole order at which the shards end; `even_ends` finds them. Memory: the folders' indexes, and one sample.
    """

    folders: tuple[Path, ...]
    names: tuple[str, ...]
    seed: int | None
    ends: tuple[int, ...] = ()

    def units(self) -> list[str]:
        return [f"shard-{number:06d}" for number in range(len(self.ends))]

    def outcomes(self, unit: str) -> Iterator[Outcome]:
        number = int(unit.rpartition("-")[2])
        opened = _opened(self.folders)
        for folder, sample in self.between(self.ends[number - 1] if number else 0, self.ends[number]):
            key = self.key(folder, opened[folder].key(sample))
            try:
                opened[folder].image_sizes(sample)      # refuses what the index knows to be unusable
                yield Kept(replace(opened[folder].read(sample), key=key))
            except SampleRefused as refusal:
                yield Rejected(key, refusal.reason, refusal.detail)

    def settings(self) -> dict:
        return {"from": [folder.fingerprint for folder in _opened(self.folders)], "names": self.names, "seed": self.seed,
                "ends": self.ends}

    def between(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(folder, sample in it) at each place of the whole order from `start` to before `end`."""
        first = np.cumsum([0, *(len(folder) for folder in _opened(self.folders))])
        numbers = np.arange(start, end)
        if self.seed is not None:
            numbers = permuted_all(numbers, int(first[-1]), key_of("shard", self.seed))
        folders = np.searchsorted(first, numbers, "right") - 1
        return zip(folders.tolist(), (numbers - first[folders]).tolist(), strict=True)

    def key(self, folder: int, key: str) -> str:
        return key if len(self.folders) == 1 else f"{self.names[folder]}/{key}"


@lru_cache(maxsize=1)
def _opened(folders: tuple[Path, ...]) -> list[ShardFolder]:
    """Once in each process: an index is parsed once, not once a shard."""
    return [ShardFolder(folder, "") for folder in folders]


def even_ends(merged: Merged, samples: int, most_bytes: int) -> tuple[int, ...]:
    """Where shards end so that each has at most so many samples and bytes, and one sample at least.

    Raises DataError if a key is too long for a tar once its folder's name stands before it.
    """
    opened = _opened(merged.folders)
    count, size, ends = 0, 2 * _BLOCK, []
    total = sum(len(folder) for folder in opened)
    for place, (folder, sample) in enumerate(merged.between(0, total)):
        shard, row = opened[folder].locate(sample)
        index = opened[folder].index(shard)
        key = merged.key(folder, index.keys[row])
        if len(merged.folders) > 1 and len(key.encode()) > LONGEST_KEY:
            raise DataError(f"the key {key} has {len(key.encode())} bytes, at most {LONGEST_KEY} fit a tar's names: give the folder a "
                            f"shorter name with --names")
        members = [int(index.records[row, 1]), *index.images_of(row)[:, 1].tolist()]
        own = sum(_BLOCK + -(-member // _BLOCK) * _BLOCK for member in members)
        if count and (count == samples or size + own > most_bytes):
            ends.append(place)
            count, size = 0, 2 * _BLOCK
        count, size = count + 1, size + own
    return (*ends, total)


def merge(folders: Sequence[Path], names: Sequence[str] | None, seed: int | None, samples: int = SAMPLES,
          megabytes: float = MEGABYTES) -> Merged:
    """The source of the verb. Raises DataError: names that are not different plain words, a folder without an index, long keys."""
    names = tuple(names or (folder.resolve().name for folder in folders))
    if len(names) != len(folders) or len(set(names)) != len(names):
        raise DataError(f"{len(folders)} folders and {len(names)} names, {len(set(names))} of them different ({', '.join(names)}): "
                        "give each folder a name of its own with --names")
    if wrong := [name for name in names if not name or set(name) & set("/.\\")]:
        raise DataError(f"--names: {wrong[0]!r} cannot stand before keys; use a word without dots and slashes")
    merged = Merged(tuple(folder.resolve() for folder in folders), names, seed)
    return replace(merged, ends=even_ends(merged, samples, int(megabytes * 1e6)))


def main(arguments: list[str]) -> int:
    """`python -m data_prep shard IN ... OUT`"""
    parser = parser_of("shard", __doc__, "folders of indexed shards", many=True)
    parser.add_argument("--seed", type=int, help="shuffle all samples; without it they stay in order")
    parser.add_argument("--samples-per-shard", type=positive, default=SAMPLES, metavar="N", help="at most (default %(default)s)")
    parser.add_argument("--shard-mb", type=positive, default=MEGABYTES, metavar="MB", help="at most (default %(default)s)")
    parser.add_argument("--names", type=lambda text: text.split(","), metavar="A,B", help="what stands before the keys of each folder "
                        "(default: the folders' own names; keys of a single folder stay as they are)")
    options = parser.parse_args(arguments)
    folders = [existing_folder(folder, "shard") for folder in options.source]
    source = merge(folders, options.names, options.seed, options.samples_per_shard, options.shard_mb)
    show_pass("shard", source, options.out, options.workers)
    return 0
