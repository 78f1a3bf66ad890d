"""The loader of one data-parallel rank: whole steps, built ahead by threads, in an order that is a function of the cursor alone.

    planner thread:  slots of the step -> costs -> rows of every rank           (the same on all ranks, nothing decoded)
    decoder threads: this rank's rows -> read, decode, tile, pack
    caller:          next(loader) -> StepBatch, in order

Workers, prefetch and timing change nothing in what comes out. The only state is `cursor`, the slots consumed.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Self

from nvlm_train.config.schema import Run
from nvlm_train.contracts import PackedBatch, Slot, StepBatch
from nvlm_train.data import segments
from nvlm_train.data.ahead import Ahead
from nvlm_train.data.encode import Encoder
from nvlm_train.data.features import FeatureKey
from nvlm_train.data.order import BlendSource, Pick
from nvlm_train.data.permutation import key_of, permuted
from nvlm_train.data.planning import PlannedSample, build_row, plan_slots
from nvlm_train.data.shard_cache import ShardCache
from nvlm_train.data.sources import Source, cache_of, open_sources, sample_weights
from nvlm_train.data.tiling import Scratch
from nvlm_train.data.tokenizer import Tokenizer
from nvlm_train.data.workers import Worker, Workers
from nvlm_train.errors import DataError
from nvlm_train.redaction import redact_text

STALL_S = 300.0   # one sample taking this long is a stalled file system: say so instead of waiting for ever
_LOOK_S = 0.5     # how often a waiting caller looks whether something stalled


@dataclass(frozen=True)
class _Pending:
    """A step on its way: its rows as futures of (PackedBatch, slots), and the slots that stay empty for certain."""

    cursor: int
    rows: list[Future]
    refused: list[Slot]


class StepLoader:
    """Iterates over one rank's `StepBatch`es; a context manager, since it owns threads.

    refused: Counter of reasons over this rank's slots so far; slots: how many slots that was. plan: its segments belong
    beside a cursor that is saved, so that it still means the same samples.
    """

    def __init__(self, plan: segments.Plan, sources: Sequence[Source], encoder: Encoder, *, global_batch: int, rank: int, size: int,
                 start: int = 0, end: int | None = None, multiple: int = 1, stall_s: float = STALL_S, cache: ShardCache | None = None,
                 pinned: bool = False):
        """plan, sources: the blend, in the same order. start: slots already consumed; end: slots after which iteration stops
        (None: never). multiple: rows per rank are a multiple of it. cache: the one that remote sources were opened with. pinned: tiles
        and features come in page-locked memory, from which a GPU copies them by itself."""
        if not 0 <= rank < size:
            raise ValueError(f"data rank {rank} of {size}")
        self.plan, self._sources, self._encoder = plan, list(sources), encoder
        self._batch, self._rank, self._size, self._multiple = global_batch, rank, size, multiple
        self._start, self._end, self._stall_s, self._pinned = start, end, stall_s, pinned
        self.refused: Counter[str] = Counter()
        self.slots = 0
        self._ahead = Ahead(plan.order, [source.folder for source in self._sources], cache or ShardCache())
        self._workers = Workers(encoder.data.workers)
        self._planning = Worker()
        self._ready: SimpleQueue[_Pending | BaseException] = SimpleQueue()
        self._over: BaseException | None = None   # the end or an error, once met
        self._permits = threading.Semaphore(max(1, encoder.data.prefetch))
        self._closed = False
        self._planner = threading.Thread(target=self._plan_ahead, name="nvlm-plan", daemon=True)
        self._planner.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        """The next step. Raises whatever went wrong in a thread, and DataError, naming the shard, when a read stalls.

        After an error or the end every further call raises the same again: no step is ever passed over.
        """
        if self._closed:
            raise RuntimeError("this loader is closed")
        if self._over is not None:
            raise self._over
        try:
            pending = self._wait(partial(self._ready.get, timeout=_LOOK_S))
            if not isinstance(pending, _Pending):
                raise pending
            built = [self._wait(partial(_look_at, row)) for row in pending.rows]
        except BaseException as error:
            self._over = error
            raise
        self._permits.release()
        slots = sorted([*pending.refused, *(slot for _, row_slots in built for slot in row_slots)], key=lambda slot: slot.n)
        self.refused.update(slot.refused for slot in slots if slot.refused)
        self.slots += len(slots)
        return StepBatch(step=pending.cursor // self._batch, rows=[row for row, _ in built], slots=slots, cursor=pending.cursor)

    def close(self) -> None:
        """End the threads and drop what was built ahead. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._permits.release()
        self._planner.join(5.0)
        self._workers.close()
        for source in self._sources:
            source.folder.close()

    def _plan_ahead(self) -> None:
        try:
            start = self._start
            while self._end is None or start < self._end:
                self._permits.acquire()
                if self._closed:
                    return
                self._planning.note(f"planning slots {start:,} to {start + self._batch - 1:,} (reading shard indexes)")
                self._ahead.look(start)
                picks = enumerate(self.plan.order.between(start, start + self._batch), start)
                plan = plan_slots(picks, self._sources, self._encoder.data, self._size, self._multiple)
                start += self._batch
                rows = [self._workers.submit(partial(self._build, row)) for row in plan.rows[self._rank]]
                self._ready.put(_Pending(start, rows, [slot for slot in plan.refused if slot.n % self._size == self._rank]))
                self._planning.rest()
            self._ready.put(StopIteration())
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread by __next__
            self._ready.put(error)
        finally:
            self._planning.rest()

    def _build(self, row: Sequence[PlannedSample], worker: Worker) -> tuple[PackedBatch, list[Slot]]:
        batch, slots = build_row(row, self._encoder, worker.scratch, worker.note)
        return (_pinned(batch) if self._pinned else batch), slots

    def _wait(self, look: Callable):
        """Call `look` until it finds something, unless one thread has been at one thing for too long."""
        while True:
            try:
                return look()
            except Empty:
                doing, seconds = max(self._workers.longest(), self._planning.doing(), key=lambda doing: doing[1])
                if seconds > self._stall_s:
                    raise DataError(f"no data: a thread has been {doing} for {seconds:.0f} s. Is the file system that holds the shards "
                                    "answering?") from None


def _pinned(row: PackedBatch) -> PackedBatch:
    """What is large of a row, copied into page-locked memory, by the thread that built it and not by the one that trains."""
    tiles, features = row.tiles_nCPP, row.features_nLC
    return replace(row, tiles_nCPP=tiles.pin_memory() if len(tiles) else tiles,
                   features_nLC=features if features is None else features.pin_memory())


def _look_at(row: Future) -> tuple[PackedBatch, list[Slot]]:
    """A row's result, or its error; raises Empty if there is none yet."""
    try:
        return row.result(timeout=_LOOK_S)
    except TimeoutError:
        if row.done():   # finished just now, or failed with a TimeoutError of its own
            return row.result()
        raise Empty from None


def build_plan(run: Run, sources: Sequence[Source], history: Sequence[Mapping] = (), cursor: int = 0) -> segments.Plan:
    """The order of a stage's samples from slot `cursor` on. history: the segments that a checkpoint remembers (see `segments`).

    Raises ConfigError when finite sources end before the stage does, or if the order cannot go on after `history`.
    """
    blend, weights = run.data.blend, sample_weights(run.data, sources)
    blend_sources = [BlendSource(source.name, len(source), weights[source.name], blend[source.name].epochs, source.folder.fingerprint,
                                 tuple(entry.samples for entry in source.folder.entries)) for source in sources]
    paths = {source.name: redact_text(source.folder.name) for source in sources}     # they go into manifests and messages
    plan = segments.plan(run.train.seed, blend_sources, run.data.shuffle_window, paths, history, cursor)
    plan.order.require(run.train.steps * run.train.global_batch)
    return plan


def build_loader(run: Run, tokenizer: Tokenizer, rank: int, size: int, start: int = 0, multiple: int = 1,
                 stall_s: float = STALL_S, history: Sequence[Mapping] = (), features: FeatureKey | None = None,
                 pinned: bool = False) -> StepLoader:
    """The loader of one stage for data rank `rank` of `size`, from slot `start` to the end of the stage.

    multiple: rows per rank are a multiple of it (an interleaved pipeline needs that). stall_s: seconds that reading one sample may
    take before the run stops with an error. history: as for `build_plan`. features: of the cache that stands in for
    pictures. pinned: for a run on a GPU. Raises ConfigError, DataError.
    """
    encoder = Encoder(run.model, run.data, tokenizer)
    cache = cache_of(run.data)
    sources = open_sources(run.data.blend, encoder, cache=cache, features=features)
    return StepLoader(build_plan(run, sources, history, start), sources, encoder, global_batch=run.train.global_batch, rank=rank, size=size,
                      start=start, end=run.train.steps * run.train.global_batch, multiple=multiple, stall_s=stall_s, cache=cache,
                      pinned=pinned)


class ValidationRows(Sequence[PackedBatch]):
    """One rank's validation rows, decoded anew whenever they are iterated, so that they occupy no memory between validations."""

    def __init__(self, rows: Sequence[Sequence[PlannedSample]], encoder: Encoder):
        self._rows, self._encoder = rows, encoder
        self._scratch = Scratch()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> PackedBatch:
        return build_row(self._rows[row], self._encoder, self._scratch)[0]


def validation_rows(run: Run, tokenizer: Tokenizer, rank: int, size: int, limit: int, multiple: int = 1,
                    features: FeatureKey | None = None) -> Sequence[PackedBatch]:
    """Rows of `data.validation` for one data rank: equally many on every rank, the same samples whatever `size` is.

    limit: samples in units of `train.global_batch`, shared evenly among the sources; none is taken twice. A source with more gives a
    fixed random choice, which depends on nothing but its name and size. Empty without `data.validation`.
    """
    encoder = Encoder(run.model, run.data, tokenizer)
    if not run.data.validation:
        return ValidationRows([], encoder)
    sources = open_sources(run.data.validation, encoder, "data.validation", features=features)
    share = max(1, limit * run.train.global_batch // len(sources))
    picks = [Pick(number, permuted(k, len(source), key_of("validation", source.name)), 0)
             for number, source in enumerate(sources) for k in range(min(share, len(source)))]
    plan = plan_slots(enumerate(picks), sources, run.data, size, multiple)
    return ValidationRows(plan.rows[rank], encoder)
