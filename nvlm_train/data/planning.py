"""One step: from its slots to every rank's rows by arithmetic, and from a planned row to a `PackedBatch` by decoding."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nvlm_train.config import schema
from nvlm_train.contracts import EncodedSample, PackedBatch, Sample, Slot
from nvlm_train.data.encode import Encoder, Plan
from nvlm_train.data.order import Pick
from nvlm_train.data.packing import Cost, assign, pack_row
from nvlm_train.data.sources import Source
from nvlm_train.data.tiling import Scratch, empty_tiles
from nvlm_train.errors import DataError, SampleRefused

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedSample:
    """A slot that will be used: which sample of which source, and what it will cost."""

    n: int
    source: Source
    sample: int
    plan: Plan


@dataclass(frozen=True)
class StepPlan:
    """rows: rank -> row -> samples; the same on every rank. refused: the slots known to stay empty, in order."""

    rows: list[list[list[PlannedSample]]]
    refused: list[Slot]


def _empty_slot(n: int, source: Source, sample: int, refusal: SampleRefused) -> Slot:
    log.warning("slot %d stays empty: %s, %s", n, source.folder.where(sample), refusal)
    return Slot(n, source.key(sample), source.name, refusal.reason)


def plan_slots(picks: Iterable[tuple[int, Pick]], sources: Sequence[Source], data: schema.Data, ranks: int, multiple: int = 1) -> StepPlan:
    """Assign slots, given as (n, pick), to the rows of all ranks. Decodes nothing. `multiple`: rows per rank are a multiple of it."""
    planned: list[PlannedSample] = []
    refused: list[Slot] = []
    for n, pick in picks:
        source = sources[pick.source]
        try:
            planned.append(PlannedSample(n, source, pick.sample, source.plan(pick.sample)))
        except SampleRefused as error:
            refused.append(_empty_slot(n, source, pick.sample, error))
    costs = [Cost(slot.plan.tokens, slot.plan.tiles) for slot in planned]
    dealt = assign(costs, data.pack_tokens, data.pack_tiles, ranks, multiple, data.packing)
    return StepPlan([[[planned[i] for i in row] for row in rows] for rows in dealt], refused)


def build_row(row: Sequence[PlannedSample], encoder: Encoder, scratch: Scratch,
              note: Callable[[str], None] = lambda text: None) -> tuple[PackedBatch, list[Slot]]:
    """Read, decode (or take from the feature cache) and pack one planned row; `note` is told what is being read.

    A sample refused only now (a damaged picture) leaves its slot empty and its place in the row to padding; no other sample moves
    to another row. Raises DataError.
    """
    size = encoder.geometry.tile_size
    seen = _room(row, size)
    encoded, slots, at = [], [], 0
    reads = [_start(slot) for slot in row]      # remote samples travel side by side
    for slot, read in zip(row, reads, strict=True):
        note(f"reading {slot.source.folder.where(slot.sample)}")
        out = seen[at:at + slot.plan.tiles]
        at += slot.plan.tiles
        try:
            encoded.append(_encoded(slot, read, encoder, out, scratch))
            slots.append(Slot(slot.n, slot.source.key(slot.sample), slot.source.name))
        except SampleRefused as error:
            slots.append(_empty_slot(slot.n, slot.source, slot.sample, error))
    complete = len(encoded) == len(row)
    packed = pack_row(encoded, encoder.data.pack_tokens, encoder.tokenizer.pad_id, size, seen if complete else None)
    return packed, slots


def _room(row: Sequence[PlannedSample], tile_size: int) -> np.ndarray | torch.Tensor:
    """Where a row's tiles go, or their cached features."""
    tiles = sum(slot.plan.tiles for slot in row)
    if not tiles or row[0].source.features is None:
        return empty_tiles(tiles, tile_size)
    key = row[0].source.features.key
    return torch.empty(tiles, key.tokens, key.width, dtype=key.dtype)


def _start(slot: PlannedSample) -> Callable[[], Sample] | None:
    """Begin to read a sample's bytes; None if its features are cached, which are read later."""
    features = slot.source.features
    if features is not None and slot.plan.tiles and features.holds(slot.sample):
        return None
    return slot.source.start(slot.sample)


def _encoded(slot: PlannedSample, read: Callable[[], Sample] | None, encoder: Encoder, out: np.ndarray | torch.Tensor,
             scratch: Scratch) -> EncodedSample:
    """One sample, its tiles or features in `out`. read: from `_start`."""
    features = slot.source.features
    if read is None:
        return encoder.encode(features.read(slot.sample, slot.plan.grids, out), slot.plan, features=out)
    if features is None or not slot.plan.tiles:
        return encoder.encode(read(), slot.plan, out if slot.plan.tiles else None, scratch)
    # It was refused when features were cached. What refused it then refuses it now, for the same reason.
    encoder.encode(read(), slot.plan, scratch=scratch)
    raise DataError(f"{slot.source.folder.where(slot.sample)} was refused when its features were cached and can be read now: the "
                    f"shard was restored. Delete its features ({features.key.name}) and cache them again, or train with "
                    "data.features=off")
