"""One shard of pictures through the vision encoder, into its file of features.

    decoder threads: samples of the shard, in order -> tiles        (without refused ones, which training will refuse too)
    reading rank:    as many samples' tiles as a row may hold -> every rank of the replica (`Engine.shared`)
    all its ranks:   the encoder;  reading rank: the file
"""

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice

import numpy as np
import torch

from nvlm_train.contracts import PackedBatch, Slot, StepBatch
from nvlm_train.data.feature_files import FeatureWriter, feature_file_name, writing
from nvlm_train.data.features import FeatureKey
from nvlm_train.data.loader import STALL_S
from nvlm_train.data.planning import PlannedSample
from nvlm_train.data.sources import Source
from nvlm_train.data.workers import Worker, Workers
from nvlm_train.engine.interface import Engine
from nvlm_train.errors import DataError, SampleRefused
from nvlm_train.training.progress import duration

AHEAD = 32              # samples decoded ahead of the encoder
REPORT_EVERY_S = 10.0

log = logging.getLogger(__name__)


class Progress:
    """Says every few seconds how far this process is; only the main rank's words are heard. tiles: encoded so far."""

    def __init__(self, total: int, engine: Engine):
        """total: this process's tiles."""
        self.tiles, self._total, self._share = 0, total, " of this process's share" if engine.data_size > 1 else ""
        self._began = self._reported = time.monotonic()

    def add(self, tiles: int) -> None:
        self.tiles += tiles
        now = time.monotonic()
        if now - self._reported >= REPORT_EVERY_S:
            self._reported = now
            rate = self.tiles / (now - self._began)
            log.info("%s of %s tiles%s, %.3g tiles/s, %s left", f"{self.tiles:,}", f"{self._total:,}", self._share, rate,
                     duration((self._total - self.tiles) / rate))


def planned(source: Source, shard: int) -> Iterator[PlannedSample]:
    """The samples of a shard that have tiles, in order; without those that are refused before anything is decoded."""
    first = source.folder.first(shard)
    for sample in range(first, first + source.folder.entries[shard].samples):
        try:
            plan = source.plan(sample)
        except SampleRefused:
            continue
        if plan.tiles:
            yield PlannedSample(sample, source, sample, plan)


def encode_shard(engine: Engine, source: Source | None, shard: int, key: FeatureKey, most_tiles: int, workers: Workers,
                 progress: Progress) -> None:
    """Encode one shard and publish its file. Called on every rank of a replica; source: on the one that reads, None elsewhere.

    most_tiles: of a batch. After each batch all replicas meet (`Engine.any_rank`), so that none is ever more than a batch ahead
    and no later collective waits for hours. Raises DataError: the shard cannot be read, or the file not be written.
    """
    if source is None:
        for batch in engine.shared(None):
            engine.see(batch.rows[0])
            engine.any_rank(True)
        return
    samples = list(planned(source, shard))
    with _file(source, shard, key, sum(sample.plan.tiles for sample in samples)) as writer:
        for batch in engine.shared(_batches(samples, most_tiles, workers)):
            features = engine.see(batch.rows[0])
            _write(writer, source, batch.slots, features)
            progress.add(len(features))
            engine.any_rank(True)


@contextmanager
def _file(source: Source, shard: int, key: FeatureKey, most_tiles: int) -> Iterator[FeatureWriter]:
    folder = source.folder
    entry = folder.entries[shard]
    path, images = folder.path / feature_file_name(entry.name, key.name), len(folder.index(shard).images)
    try:
        with writing(path, entry, key.parts, images, (key.tokens, key.width), key.dtype, most_tiles) as writer:
            yield writer
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}. Started again, the same command goes on with this "
                        "shard") from error


def _write(writer: FeatureWriter, source: Source, slots: Sequence[Slot], features: torch.Tensor) -> None:
    """Add a batch's samples, whose tiles lie one after the other in `features`."""
    folder, at = source.folder, 0
    for slot in slots:
        shard, place = folder.locate(slot.n)
        plan, first = source.plan(slot.n), folder.index(shard).image_first
        images = slice(int(first[place]), int(first[place + 1]))
        writer.add(place, images, plan.grids, folder.read_record(slot.n), features[at:at + plan.tiles])
        at += plan.tiles


def _batches(samples: Sequence[PlannedSample], most_tiles: int, workers: Workers) -> Iterator[StepBatch]:
    """Whole samples, in order. A batch's slots name them by their number in the folder."""
    held: list[tuple[PlannedSample, np.ndarray]] = []
    count = 0
    for sample, tiles in _decoded(samples, workers):
        if held and count + len(tiles) > most_tiles:
            yield _batch(held)
            held, count = [], 0
        held.append((sample, tiles))
        count += len(tiles)
    if held:
        yield _batch(held)


def _batch(held: Sequence[tuple[PlannedSample, np.ndarray]]) -> StepBatch:
    """Samples as a row of tiles without a sequence."""
    tiles = torch.from_numpy(np.concatenate([tiles for _, tiles in held]))
    none, starts = torch.zeros(0, dtype=torch.long), torch.full((len(tiles),), -1)
    row = PackedBatch(none, none, none, torch.zeros(0), torch.zeros(1, dtype=torch.int32), tiles, starts)
    slots = [Slot(sample.sample, sample.source.key(sample.sample), sample.source.name) for sample, _ in held]
    return StepBatch(step=0, rows=[row], slots=slots, cursor=0)


def _decoded(samples: Sequence[PlannedSample], workers: Workers) -> Iterator[tuple[PlannedSample, np.ndarray]]:
    """Samples with their tiles, in order, some decoded ahead; without those refused only now."""
    coming = ((sample, workers.submit(partial(_tiles, sample))) for sample in samples)
    waiting = deque(islice(coming, AHEAD))
    while waiting:
        sample, future = waiting.popleft()
        waiting.extend(islice(coming, 1))
        try:
            tiles = future.result(timeout=STALL_S)
        except TimeoutError:
            raise DataError(f"no data: a thread has been {workers.longest()[0]} for {STALL_S:.0f} s. Is the file system that "
                            "holds the shards answering?") from None
        if tiles is not None:
            yield sample, tiles


def _tiles(sample: PlannedSample, worker: Worker) -> np.ndarray | None:
    """uint8 [n, 3, P, P]; None for a sample that training will refuse."""
    where = sample.source.folder.where(sample.sample)
    worker.note(f"reading {where}")
    try:
        return sample.source.encoder.encode(sample.source.read(sample.sample), sample.plan, scratch=worker.scratch).tiles
    except SampleRefused as refusal:
        log.warning("%s gets no features, training will refuse it too: %s", where, refusal)
        return None
