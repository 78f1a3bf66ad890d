"""Which sample is the n-th of the run: arithmetic on (seed, n, blend, sizes), without state.

    n -> block and place -> (shuffled block) -> source, and how many samples it gave before -> epoch and k -> (shuffle) -> sample

Slots come in blocks of 1,000. Every block holds each source exactly `quota` times, in an order of its own, so a blend keeps its
proportions at any moment, and the number of samples a source has given follows from n alone. A source begins an epoch only when it
has given every sample of the one before (`shuffle` says in which order). Resuming is one integer, on any number of ranks.

A blend that is changed while a run goes on begins a *segment*: blocks count from its first slot, and each source goes on after
what it gave before.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import floor

import numpy as np

from nvlm_train.data.permutation import key_of, permuted_all
from nvlm_train.data.shuffle import FullShuffle, WindowShuffle
from nvlm_train.errors import ConfigError, DataError

BLOCK = 1000   # slots; weights are therefore rounded to thousandths, and the paper's published weights are exact


@dataclass(frozen=True)
class BlendSource:
    """name: key in the blend. size: samples. weight: relative. epochs: passes it may give (None: as many as asked for).
    content: names what the samples are (a fingerprint); it does not change the order. shards: samples of each; only windows ask."""

    name: str
    size: int
    weight: float = 1.0
    epochs: float | None = None
    content: str = ""
    shards: tuple[int, ...] = ()

    @property
    def available(self) -> float:
        """Samples that it may give in all."""
        return float("inf") if self.epochs is None else floor(self.size * self.epochs)


@dataclass(frozen=True)
class Pick:
    """One slot's sample: number of the source in the blend, number of the sample in it, and how often it was seen before."""

    source: int
    sample: int
    epoch: int


def quotas(weights: Sequence[float], block: int = BLOCK) -> list[int]:
    """Slots of each source in a block, summing to `block`: largest remainders, and at least one for every source.

    Raises ConfigError for weights that are not positive, or more sources than slots.
    """
    if not weights or len(weights) > block:
        raise ConfigError(f"a blend has 1 to {block} sources, this one has {len(weights)}")
    if not all(0 < weight < float("inf") for weight in weights):
        raise ConfigError(f"blend weights must be positive numbers, got {list(weights)}; leave a source out instead of giving it 0")
    shares = [block * weight / sum(weights) for weight in weights]
    slots = [max(1, floor(share)) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (slots[i] - shares[i], i))
    for turn in range(block - sum(slots)):
        slots[by_remainder[turn % len(slots)]] += 1
    while sum(slots) > block:   # many tiny sources were raised to one slot: the largest pay
        slots[slots.index(max(slots))] -= 1
    return slots


class Order:
    """The order of one stage's samples. Immutable, safe in several threads, the same on every rank."""

    def __init__(self, seed: int, sources: Sequence[BlendSource], window: int = 0, start: int = 0,
                 given: Mapping[str, int] | None = None):
        """window: samples of a source that are shuffled among each other, rounded to whole shards; 0: all of them.

        start: first slot of this blend; given: samples that each source gave before it, by name.
        Raises ConfigError for an impossible blend, DataError for a source without samples.
        """
        empty = [source.name for source in sources if source.size < 1]
        if empty:
            raise DataError(f"no samples in: {', '.join(empty)}")
        self.seed, self.sources, self.window, self.start = seed, tuple(sources), window, start
        self.given = {**dict.fromkeys((source.name for source in sources), 0), **(given or {})}
        self.quotas = quotas([source.weight for source in sources])
        self._shuffles = [
            WindowShuffle(seed, source.name, source.shards or (source.size,), window) if window
            else FullShuffle(seed, source.name, source.size, len(source.shards)) for source in sources]
        self._ends = list(accumulate(self.quotas))
        self._block = lru_cache(maxsize=8)(self._lay_out)   # only saves time: any block can be laid out alone

    @property
    def shares(self) -> dict[str, float]:
        """Share of each source as it is really drawn, after rounding to whole slots of a block."""
        return {source.name: quota / BLOCK for source, quota in zip(self.sources, self.quotas, strict=True)}

    @property
    def fingerprint(self) -> str:
        """Equal for orders that name the same samples; a checkpoint's cursor means something only with an equal one. SHA-256, hex."""
        lines = [f"{self.seed} {BLOCK}", *(f"{s.name} {s.size} {q} {s.content}" for s, q in zip(self.sources, self.quotas, strict=True))]
        if self.window:
            lines += [f"window {self.window}", *(f"{s.name} {s.shards}" for s in self.sources)]
        if self.start:
            lines += [f"from {self.start}", *(f"{name} {count}" for name, count in sorted(self.given.items()))]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def at(self, n: int) -> Pick:
        """The sample of slot n >= start. Raises DataError beyond a source's epochs, rather than repeating its samples."""
        return self.between(n, n + 1)[0]

    def between(self, start: int, end: int) -> list[Pick]:
        """The samples of the slots from `start` to before `end`. Raises DataError as `at`."""
        if start < self.start:
            raise IndexError(f"slot {start} is before {self.start}, where this blend begins")
        draws = [self._draw(n) for n in range(start, end)]
        passes: dict[tuple[int, int], list[int]] = {}      # (source, epoch) -> slots, counted from start
        for i, (source, counter) in enumerate(draws):
            if counter >= self.sources[source].available:
                raise self._used_up(start + i, self.sources[source], counter)
            passes.setdefault((source, counter // self.sources[source].size), []).append(i)
        picks: list[Pick] = [None] * len(draws)
        for (source, epoch), slots in passes.items():
            chosen = self.sources[source]
            places = np.array([draws[i][1] for i in slots], dtype=np.int64) - epoch * chosen.size
            for i, sample in zip(slots, self._shuffles[source].samples(places, epoch).tolist(), strict=True):
                picks[i] = Pick(source, sample, epoch)
        return picks

    @staticmethod
    def _used_up(n: int, source: BlendSource, counter: int) -> DataError:
        return DataError(f"slot {n:,} asks {source.name} for its sample {counter + 1:,}, and {source.epochs:g} epochs of "
                         f"{source.size:,} samples give {source.available:,}: lower its weight or train.steps, or raise its epochs")

    def drawn(self, slots: int) -> list[int]:
        """Samples that each source has given when the slots before `slots` are done, those of earlier blends included."""
        blocks, rest = divmod(slots - self.start, BLOCK)
        counts = [self.given[source.name] + blocks * quota for source, quota in zip(self.sources, self.quotas, strict=True)]
        for source, _ in self._block(blocks)[:rest]:
            counts[source] += 1
        return counts

    def shards_from(self, slot: int) -> list[list[list[int]]]:
        """For each source the shards that are read at a slot, then those that are read next; all at once without windows."""
        return [shuffle.shards_from(counter % source.size, counter // source.size)
                for source, shuffle, counter in zip(self.sources, self._shuffles, self.drawn(slot), strict=True)]

    def require(self, slots: int) -> None:
        """Raises ConfigError, naming every source with both numbers, if finite sources end before `slots` slots."""
        problems = []
        for source, quota, needed in zip(self.sources, self.quotas, self.drawn(slots), strict=True):
            if needed > source.available:
                problems.append(
                    f"{source.name} runs out: {slots:,} slots (train.steps x train.global_batch) draw {needed:,} samples of it at a share of "
                    f"{quota / BLOCK:.1%}, and data.blend.{source.name}.epochs={source.epochs:g} of {source.size:,} samples give "
                    f"{source.available:,}. Take fewer steps, lower its weight, or raise its epochs to {needed / source.size:.3f}")
        if problems:
            raise ConfigError(problems)

    def _draw(self, n: int) -> tuple[int, int]:
        """(source, how many samples it gave before) of slot n."""
        block, place = divmod(n - self.start, BLOCK)
        source, before = self._block(block)[place]
        return source, self.given[self.sources[source].name] + block * self.quotas[source] + before

    def _lay_out(self, block: int) -> list[tuple[int, int]]:
        """(source, how many of the block's slots it had before) of every place of a block."""
        key = key_of("block", self.seed, block, *([self.start] if self.start else []))
        had = [0] * len(self.quotas)
        places = []
        for slot in permuted_all(np.arange(BLOCK), BLOCK, key).tolist():
            source = bisect_right(self._ends, slot)
            places.append((source, had[source]))
            had[source] += 1
        return places
