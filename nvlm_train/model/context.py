"""Context parallelism: which tokens of a row, and which of its tiles, each of several ranks computes. Arithmetic on the host.

A row is cut into two chunks a rank, all of one length. Under the causal mask a chunk's attention costs what its (query, key) pairs
do, so the chunk with most pairs goes with the one with fewest, the next with the next. A row that is one long sample is dealt as Llama 3
does (arXiv 2407.21783, section 3.3.2: chunks i and 2n - 1 - i); a row of many samples is dealt by what they really cost.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from nvlm_train.config.split import CHUNKS, tiles_of_rank
from nvlm_train.contracts import PackedBatch

Range = tuple[int, int]     # tokens [start, end)


@dataclass(frozen=True)
class Piece:
    """Tokens [start, end) of one sample; they attend to its tokens from `first` up to themselves."""

    start: int
    end: int
    first: int

    @property
    def pairs(self) -> int:
        """(query, key) pairs under the causal mask."""
        before, after = self.start - self.first, self.end - self.first
        return (after * (after + 1) - before * (before + 1)) // 2


def pieces(ranges: Iterable[Range], edges: Sequence[int]) -> list[Piece]:
    """The samples' parts in `ranges`, in their order. edges: boundaries of the row's segments, from 0 to T."""
    segments = list(itertools.pairwise(edges))
    return [Piece(max(start, first), min(end, last), first)
            for start, end in ranges for first, last in segments if max(start, first) < min(end, last)]


def deal(edges: Sequence[int], ranks: int) -> list[list[Range]]:
    """Each rank's tokens of a row: ascending ranges, as many tokens for each. Raises ValueError where the row cannot be cut so."""
    count, tokens = CHUNKS * ranks, edges[-1]
    if tokens % count:
        raise ValueError(f"a row of {tokens} tokens cannot be cut into {count} equal chunks, {CHUNKS} for each of {ranks} ranks")
    length = tokens // count
    chunks = [(at, at + length) for at in range(0, tokens, length)]
    pairs = [sum(piece.pairs for piece in pieces([chunk], edges)) for chunk in chunks]
    order = sorted(range(count), key=lambda number: (pairs[number], number))
    return [_joined(chunks[number] for number in sorted((order[rank], order[-1 - rank]))) for rank in range(ranks)]


def _joined(chunks: Iterable[Range]) -> list[Range]:
    """Two neighbours as one: their keys are then gathered once."""
    first, second = chunks
    return [(first[0], second[1])] if first[1] == second[0] else [first, second]


@dataclass(frozen=True)
class Context:
    """A rank's place in its context-parallel group."""

    group: dist.ProcessGroup
    rank: int
    size: int

    def share_of(self, row: PackedBatch) -> "Share":
        return Share(self, tuple(row.cu_seqlens.tolist()))


@dataclass(frozen=True)
class Share:
    """What one rank computes of a row with segments between `edges`. All of it on the host."""

    context: Context
    edges: tuple[int, ...]

    @cached_property
    def dealt(self) -> list[list[Range]]:
        """Of every rank."""
        return deal(self.edges, self.context.size)

    @cached_property
    def pieces(self) -> list[Piece]:
        return pieces(self.dealt[self.context.rank], self.edges)

    @cached_property
    def places(self) -> Tensor:
        """int64 [T / ranks], row positions of this rank's tokens, ascending."""
        return _places(self.dealt[self.context.rank])

    @cached_property
    def gathered_at(self) -> Tensor:
        """int64 [T]: where each row position stands once all ranks' tokens lie one rank behind the other."""
        there = torch.cat([_places(ranges) for ranges in self.dealt])
        return torch.empty_like(there).index_copy(0, there, torch.arange(len(there)))

    def take(self, row: PackedBatch) -> PackedBatch:
        """The row as this rank sees it: its own tokens, spans of readers and tiles, as if they were all.

        Places of tiles still count in the whole row, since a tile's tokens may stand on several ranks (see `spread`).
        """
        at, seen = self.places, tiles_of_rank(len(row.tile_starts_n), self.context.rank, self.context.size)
        return replace(
            row, tokens_T=row.tokens_T[at], positions_T=row.positions_T[at], labels_T=row.labels_T[at],
            loss_weights_T=row.loss_weights_T[at], cu_seqlens=torch.searchsorted(at, row.cu_seqlens.long()).int(),
            reads_s4=self._reads(row.reads_s4), tiles_nCPP=row.tiles_nCPP[seen],
            features_nLC=None if row.features_nLC is None else row.features_nLC[seen])

    def _reads(self, reads_s4: Tensor) -> Tensor:
        """The spans with their tokens counted here; those that have none here are left out."""
        here = torch.searchsorted(self.places, reads_s4[:, :2].contiguous())
        spans = torch.cat((here, reads_s4[:, 2:]), 1)
        return spans[here[:, 0] < here[:, 1]]

    def spread(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """(where they stand here, which they are) of those row positions that this rank holds."""
        at = torch.searchsorted(self.places, places).clamp_(max=len(self.places) - 1)
        which = (self.places[at] == places).nonzero()[:, 0]
        return at[which], which


def _places(ranges: Iterable[Range]) -> Tensor:
    return torch.cat([torch.arange(start, end) for start, end in ranges])
