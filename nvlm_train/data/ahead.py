"""Which shards of remote folders are worth keeping on the local disk at a moment of a run, and in which order to fetch them."""

import logging
from collections.abc import Sequence

from nvlm_train.data.index import ShardEntry
from nvlm_train.data.order import Order
from nvlm_train.data.shard_cache import ShardCache
from nvlm_train.data.shards import ShardFolder

log = logging.getLogger(__name__)

_GB = 1e9


class Ahead:
    """Tells every remote folder which of its shards are read now and next, as far as the cache's limit reaches."""

    def __init__(self, order: Order, folders: Sequence[ShardFolder], cache: ShardCache):
        """folders: of the order's sources, in its order."""
        self._order, self._folders, self._cache = order, list(folders), cache
        self._needed = cache.limit > 0 and any(folder.storage.remote for folder in self._folders)
        self._seen: list | None = None
        self._told = False

    def look(self, slot: int) -> None:
        """Called as slots go by; cheap when nothing changed."""
        if not self._needed:
            return
        shards = self._order.shards_from(slot)
        if shards == self._seen:
            return
        self._seen = shards
        now, following = self._remote(shards, 0), self._remote(shards, 1)
        used = sum(self._entry(*pair).size for pair in now)
        if used > self._cache.limit:
            self._tell(used)
            return
        room, kept = self._cache.limit, []
        for pair in dict.fromkeys(now + following):
            room -= self._entry(*pair).size
            if room < 0:
                break
            kept.append(pair)
        self._cache.keep = frozenset(self._entry(*pair).sha256 for pair in kept)
        for number, folder in enumerate(self._folders):
            folder.storage.expect([self._entry(*pair) for pair in kept if pair[0] == number])

    def _remote(self, shards: Sequence[Sequence[Sequence[int]]], part: int) -> list[tuple[int, int]]:
        """(source, shard) of what remote sources read now (part 0) or next (1; there is none without windows)."""
        return [(number, shard) for number, source in enumerate(shards) if self._folders[number].storage.remote
                for shard in (source[part] if part < len(source) else ())]

    def _entry(self, number: int, shard: int) -> ShardEntry:
        return self._folders[number].entries[shard]

    def _tell(self, used: int) -> None:
        if not self._told:
            self._told = True
            fewer = "Make data.shuffle_window smaller" if self._order.window else "Set data.shuffle_window, to draw from few shards at a time,"
            log.warning("no shard is kept on the local disk: %.3g GB of remote shards are in use at once, and data.cache_gb is %.3g. "
                        "Samples are read one by one. %s or data.cache_gb larger to keep whole shards",
                        used / _GB, self._cache.limit / _GB, fewer)
