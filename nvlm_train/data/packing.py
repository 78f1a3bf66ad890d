"""Packs one step's samples into rows of T tokens and at most N tiles, and deals the rows to the data ranks.

All of it is a function of the samples' costs, so every rank computes the same assignment by itself. Packing never changes what a
step learns: it only decides which samples share a row.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import torch

from nvlm_train.contracts import EncodedSample, PackedBatch
from nvlm_train.data.layout import reads, shift_starts, stack_tags
from nvlm_train.errors import DataError

# What a tile's pass through the frozen vision encoder costs, in tokens of the language model's forward and backward. From the
# parameter counts: 1,024 patches x 0.3 B / (3 x 1.5 B) is 68 for InternViT-300M with a 1.5B model, and 26 for 6B with 72B.
# It only weighs the balance between ranks.
TILE_COST = 64


@dataclass(frozen=True)
class Cost:
    """What one sample takes of a row's two budgets."""

    tokens: int
    tiles: int

    @property
    def work(self) -> int:
        return self.tokens + TILE_COST * self.tiles


def pack(costs: Sequence[Cost], max_tokens: int, max_tiles: int) -> list[list[int]]:
    """Rows of indices into `costs`: best fit, largest first, under both budgets. Deterministic, O(samples x log rows) in practice.

    A sample's size is the larger share it takes of the two budgets; it goes where the least of that budget is left. Raises
    DataError for a sample that fits no row.
    """
    sizes, by_tiles = [], []
    for i, cost in enumerate(costs):
        if cost.tokens > max_tokens or cost.tiles > max_tiles:
            raise DataError(f"sample {i} of the step takes {cost.tokens:,} tokens and {cost.tiles} tiles; a row holds {max_tokens:,} "
                            f"(data.pack_tokens) and {max_tiles} (data.pack_tiles)")
        shares = (cost.tokens / max_tokens, cost.tiles / max_tiles if max_tiles else 0.0)
        sizes.append(max(shares))
        by_tiles.append(shares[1] > shares[0])
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []                                # row -> tokens, tiles left
    roomy: tuple[list, list] = ([], [])                             # (left, row) of every row, ascending: by tokens, by tiles
    for i in sorted(range(len(costs)), key=lambda i: (-sizes[i], i)):
        tokens, tiles = costs[i].tokens, costs[i].tiles
        ranked, needed = (roomy[1], tiles) if by_tiles[i] else (roomy[0], tokens)
        for at in range(bisect_left(ranked, (needed, -1)), len(ranked)):
            row = ranked[at][1]
            if free[row][0] >= tokens and free[row][1] >= tiles:
                rows[row].append(i)
                for axis in (0, 1):
                    del roomy[axis][bisect_left(roomy[axis], (free[row][axis], row))]
                break
        else:
            row = len(rows)
            rows.append([i])
            free.append((max_tokens, max_tiles))
        free[row] = (free[row][0] - tokens, free[row][1] - tiles)
        for axis in (0, 1):
            insort(roomy[axis], (free[row][axis], row))
    return [sorted(row) for row in rows]


def deal(rows: Sequence[Sequence[int]], costs: Sequence[Cost], ranks: int, multiple: int = 1) -> list[list[list[int]]]:
    """Rows of every rank: equally many (a multiple of `multiple`, at least that), level in work, filled up with empty rows.

    The heaviest row goes to the rank with the least work that still has room; ties go to the lower rank. Deterministic.
    """
    per_rank = max(1, -(-len(rows) // (ranks * multiple))) * multiple
    dealt: list[list[list[int]]] = [[] for _ in range(ranks)]
    work = [sum(costs[i].work for i in row) for row in rows]
    with_room = [(0, rank) for rank in range(ranks)]     # a heap of (work so far, rank)
    for row in sorted(range(len(rows)), key=lambda row: (-work[row], row)):
        load, rank = heappop(with_room)
        dealt[rank].append(list(rows[row]))
        if len(dealt[rank]) < per_rank:
            heappush(with_room, (load + work[row], rank))
    for rank_rows in dealt:
        rank_rows.extend([] for _ in range(per_rank - len(rank_rows)))
    return dealt


def assign(costs: Sequence[Cost], max_tokens: int, max_tiles: int, ranks: int, multiple: int = 1,
           packing: bool = True) -> list[list[list[int]]]:
    """rank -> row -> indices into `costs`. packing False: one sample a row, under the same budgets. Raises DataError as `pack`."""
    rows = pack(costs, max_tokens, max_tiles)
    if not packing:
        rows = [[i] for i in range(len(costs))]
    return deal(rows, costs, ranks, multiple)


def pack_row(samples: Sequence[EncodedSample], tokens: int, pad_id: int, tile_size: int,
             seen: np.ndarray | torch.Tensor | None = None) -> PackedBatch:
    """One row of `tokens` tokens: the samples end to end, then padding as a segment of its own. No samples: an empty row.

    tile_size: pixels, for a row without tiles. seen: uint8 [n, 3, P, P], the samples' tiles, or [n, L, C], their cached features,
    if they already lie together. Raises DataError if the samples do not fit, or if one's memory is not of its tiles.
    """
    lengths = [sample.length for sample in samples]
    used = sum(lengths)
    if used > tokens:
        raise DataError(f"{len(samples)} samples of {used:,} tokens do not fit a row of {tokens:,} (data.pack_tokens)")
    row = np.full(tokens, pad_id, dtype=np.int64)
    positions = np.empty(tokens, dtype=np.int64)
    labels = np.zeros(tokens, dtype=np.int64)
    weights = np.zeros(tokens, dtype=np.float32)
    starts, at = [], 0
    for sample in samples:
        end = at + sample.length
        row[at:end] = sample.tokens
        positions[at:end] = np.arange(sample.length)
        weights[at:end - 1] = sample.loss_weights[1:]   # a token predicts the next of its own sample; the last predicts nothing
        labels[at:end - 1] = np.where(sample.loss_weights[1:] != 0, sample.tokens[1:], 0)
        starts.append(shift_starts(sample.tile_starts, at))
        at = end
    positions[at:] = np.arange(tokens - at)
    boundaries = np.cumsum([0, *lengths, *([tokens - used] if used < tokens else [])], dtype=np.int32)
    if seen is None:
        seen = _joined(samples, tile_size)
    cached = isinstance(seen, torch.Tensor)
    tiles = np.empty((0, 3, tile_size, tile_size), dtype=np.uint8) if cached else seen
    reads_s4, memory_tags_mG = _memory_of(samples)
    return PackedBatch(
        tokens_T=torch.from_numpy(row), positions_T=torch.from_numpy(positions), labels_T=torch.from_numpy(labels),
        loss_weights_T=torch.from_numpy(weights), cu_seqlens=torch.from_numpy(boundaries), tiles_nCPP=torch.from_numpy(tiles),
        tile_starts_n=torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *starts])),
        keys=tuple(sample.key for sample in samples), sources=tuple(sample.source for sample in samples),
        reads_s4=torch.from_numpy(reads_s4), memory_tags_mG=torch.from_numpy(memory_tags_mG),
        features_nLC=seen if cached else None)


def _joined(samples: Sequence[EncodedSample], tile_size: int) -> np.ndarray | torch.Tensor:
    """The samples' tiles in one array, or their cached features; a row has one or the other."""
    features = [sample.features for sample in samples if sample.features is not None]
    tiles = np.concatenate([np.empty((0, 3, tile_size, tile_size), dtype=np.uint8), *(sample.tiles for sample in samples)])
    if features and len(tiles):
        raise DataError(f"a row holds {len(tiles)} tiles and the cached features of {sum(map(len, features))}: it takes "
                        "one or the other")
    return torch.cat(features) if features else tiles


def _memory_of(samples: Sequence[EncodedSample]) -> tuple[np.ndarray, np.ndarray]:
    """`reads_s4` and `memory_tags_mG` of a row of these samples: their memory tiles numbered through, none read across samples."""
    tables, tags = [np.empty((0, 4), dtype=np.int64)], []
    token, tile = 0, 0
    for sample in samples:
        in_memory = int((sample.tile_starts < 0).sum())
        described = 0 if sample.memory is None else len(sample.memory.seen_from_m)
        if in_memory != described:
            raise DataError(f"{sample.key}: {in_memory} of its tiles are not in the sequence, its memory describes {described}")
        if sample.memory is not None:
            tables.append(reads(sample.memory, sample.length) + (token, token, tile, tile))
            tags.append(sample.memory.tags_mG)
        token, tile = token + sample.length, tile + in_memory
    return np.concatenate(tables), stack_tags(tags)
