"""In which order one pass over a source takes its samples: all shuffled at once, or a window of whole shards at a time.

    place in the pass -> window -> (shuffled within the window) -> shard, in the pass's shuffled order of shards -> sample

Both are arithmetic: any place can be asked alone. Windows let a slow disk or an object store read whole shards one after another,
since only the shards of one window, or at a seam of two, are in use at a time. What that costs in randomness is in docs/data_order.md.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from nvlm_train.data.permutation import key_of, permuted_all


class FullShuffle:
    """Every sample of a source may come at any place of a pass."""

    def __init__(self, seed: int, name: str, size: int, shards: int):
        self.seed, self.name, self.size, self._shards = seed, name, size, shards

    def samples(self, places: np.ndarray, epoch: int) -> np.ndarray:
        """The samples at these places of a pass, int64 as `places`. Raises IndexError beyond the source's size."""
        return permuted_all(places, self.size, key_of("epoch", self.seed, self.name, epoch))

    def shards_from(self, place: int, epoch: int) -> list[list[int]]:
        """Shards that are read at a place, and those read next: here all of them, at any place."""
        return [list(range(self._shards))]


class WindowShuffle:
    """Whole shards in a shuffled order, cut into windows of nearly equal size; samples are shuffled within their window."""

    def __init__(self, seed: int, name: str, sizes: Sequence[int], window: int):
        """sizes: samples of each shard. window: samples that are shuffled among each other, rounded to whole shards."""
        self.seed, self.name, self._window = seed, name, window
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._firsts = np.cumsum(self._sizes) - self._sizes
        self.size = int(self._sizes.sum())
        self._pass = lru_cache(maxsize=4)(self._lay_out)    # only saves time: any pass can be laid out alone

    def samples(self, places: np.ndarray, epoch: int) -> np.ndarray:
        """As `FullShuffle.samples`."""
        if len(places) and not (places.min() >= 0 and places.max() < self.size):
            raise IndexError(f"places {places.min()} to {places.max()} of {self.size}")
        shards, ends, cuts = self._pass(epoch)
        bounds = ends[cuts]
        windows = np.searchsorted(bounds, places, side="right")
        shuffled = np.empty_like(places)
        for window in np.unique(windows):
            start = bounds[window - 1] if window else 0
            key = key_of("window", self.seed, self.name, epoch, int(window))
            inside = windows == window
            shuffled[inside] = start + permuted_all(places[inside] - start, int(bounds[window] - start), key)
        at = np.searchsorted(ends, shuffled, side="right")
        return self._firsts[shards[at]] + shuffled - (ends[at] - self._sizes[shards[at]])

    def shards_from(self, place: int, epoch: int) -> list[list[int]]:
        """Shards of the window that a place lies in, and of the window after it."""
        shards, ends, cuts = self._pass(epoch)
        window = int(np.searchsorted(ends[cuts], place, side="right"))
        edges = [0, *(cuts + 1).tolist()]
        now = shards[edges[window]:edges[window + 1]].tolist()
        if window + 1 < len(cuts):
            return [now, shards[edges[window + 1]:edges[window + 2]].tolist()]
        following, _, cuts = self._pass(epoch + 1)
        return [now, following[:cuts[0] + 1].tolist()]

    def _lay_out(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A pass's shards in order, samples up to and with each, and which of them ends a window."""
        count = len(self._sizes)
        shards = permuted_all(np.arange(count), count, key_of("shards", self.seed, self.name, epoch))
        ends = np.cumsum(self._sizes[shards])
        windows = max(1, round(self.size / self._window))
        targets = [self.size * (window + 1) // windows for window in range(windows)]
        return shards, ends, np.unique(np.searchsorted(ends, targets, side="left"))
