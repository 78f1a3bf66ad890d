"""Text tokens of every sample, counted once per tokenizer and template and kept beside the shards.

With them and the picture sizes of the index the cost of any sample is known without reading it.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nvlm_train.data.encode import Encoder
from nvlm_train.data.index import ShardEntry, refusal, write_json
from nvlm_train.data.records import read_record
from nvlm_train.data.shards import CHANGED, ShardFolder
from nvlm_train.errors import SampleRefused

log = logging.getLogger(__name__)
_REPORT_EVERY_S = 5.0


def _report(done: int, total: int, folder: ShardFolder) -> None:
    log.warning("counting text tokens of %s for this tokenizer and template: %s of %s samples", folder.name, f"{done:,}", f"{total:,}")


def _cache_folder(folder: ShardFolder) -> Path:
    """Where counts go when the shards' own folder is read-only."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nvlm_train" / "counts" / folder.fingerprint[:16]


@dataclass(frozen=True)
class _Counts:
    """counts: int64 [samples] of one shard; refused: place -> "reason: detail"."""

    counts: np.ndarray
    refused: Mapping[int, str]


def _load(path: Path, sha256: str, samples: int) -> _Counts | None:
    """A count file, or None if it is absent, damaged or of another shard: counts are only ever a saving of time."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        counts = np.array(content["counts"], dtype=np.int64)
        refused = {int(place): str(reason) for place, reason in content["refused"].items()}
        fits = content["shard_sha256"] == sha256 and counts.shape == (samples,)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return _Counts(counts, refused) if fits else None


class TextCounts:
    """Text tokens of the samples of one folder, by sample number."""

    def __init__(self, folder: ShardFolder, encoder: Encoder, report: Callable[[int, int, ShardFolder], None] = _report):
        """Loads the counts of every shard; counts and stores those that are missing, calling report(done, all, folder) meanwhile."""
        self._folder, self._encoder, self._report = folder, encoder, report
        self._reported = time.monotonic()
        folder.storage.bring([self._name(entry) for entry in folder.entries])
        self._shards = [self._shard(number) for number in range(len(folder.entries))]

    def tokens(self, sample: int) -> int:
        """Tokens of a sample without tiles and tags. Raises SampleRefused if its text cannot be used."""
        shard, place = self._folder.locate(sample)
        if place in self._shards[shard].refused:
            raise refusal(self._shards[shard].refused[place])
        return int(self._shards[shard].counts[place])

    def _shard(self, number: int) -> _Counts:
        entry = self._folder.entries[number]
        places = [folder / self._name(entry) for folder in (self._folder.path, _cache_folder(self._folder))]
        for path in places:
            found = _load(path, entry.sha256, entry.samples)
            if found is not None:
                return found
        counted = self._count(number)
        if any(refusal(reason).reason == CHANGED for reason in counted.refused.values()):
            return counted   # the shard may be restored, and its samples with it
        content = {"shard_sha256": entry.sha256, "counts": counted.counts.tolist(),
                   "refused": {str(place): reason for place, reason in counted.refused.items()}}
        for path in places:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, content)
                break
            except OSError as error:
                log.info("text token counts cannot be kept in %s: %s", path.parent, error)
        return counted

    def _count(self, number: int) -> _Counts:
        entry, index = self._folder.entries[number], self._folder.index(number)
        first = self._folder.first(number)
        counts, refused = np.zeros(entry.samples, dtype=np.int64), {}
        for place, record in self._folder.records(number):
            try:
                counts[place] = self._encoder.text_tokens(read_record(record).turns, len(index.images_of(place)))
            except SampleRefused as error:
                refused[place] = str(self._cause(first + place, error))
            if time.monotonic() - self._reported > _REPORT_EVERY_S:
                self._reported = time.monotonic()
                self._report(first + place + 1, len(self._folder), self._folder)
        return _Counts(counts, refused)

    def _name(self, entry: ShardEntry) -> str:
        return f"{entry.name}.tokens-{self._encoder.fingerprint}.json"

    def _cause(self, sample: int, refused: SampleRefused) -> SampleRefused:
        """Why a sample is refused: for its text, unless that is no longer the text that was indexed."""
        try:
            self._folder.read(sample)
        except SampleRefused as changed:
            return changed
        return refused
