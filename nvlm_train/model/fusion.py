"""Where D, X and H differ: what of an image enters the token sequence, and what is cross-attention memory, read by whom.

The data side says it tile by tile (`PackedBatch.tile_starts_n`, `reads_s4`, `memory_tags_mG`); here it becomes token places.

    NVLM-D   every tile's tokens stand in the sequence, behind the tile's tag                          (paper section 4.2)
    NVLM-X   no tile stands there; tags do, each reading its own tile of the memory                    (4.3)
    NVLM-H   the thumbnail stands in the sequence, the regular tiles, each with its tag, in the memory (4.4)
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from nvlm_train.contracts import PackedBatch
from nvlm_train.model.context import Share
from nvlm_train.model.cross_attention import Reads, plan_reads
from nvlm_train.parallel.device import send


@dataclass(frozen=True)
class Places:
    """Where a row's tiles go, on the device. n tiles, m of them in the memory of M tokens.

    shown_at: of the n - m tiles in the sequence, the places of all their visual tokens; shown, kept: which tiles these are, and
    which are memory. taken: where a row is shared out, which of these visual tokens stand here (None: all). tile_at, tag_at: places in the memory of visual and of tag tokens.
    tag_ids: the tags' tokens, embedded by the language model like any text. edges: on the host, the places where the memory's tiles
    (each with its tag) begin, and where the last ends.
    """

    shown_at: Tensor
    shown: Tensor
    kept: Tensor
    tile_at: Tensor
    tag_at: Tensor
    tag_ids: Tensor
    edges: tuple[int, ...]
    reads: Reads
    taken: Tensor | None = None

    @property
    def tiles(self) -> int:
        """n, whoever sees them."""
        return len(self.shown) + len(self.kept)

    @property
    def memory_tokens(self) -> int:
        return self.edges[-1]


def place(row: PackedBatch, tile_tokens: int, device: torch.device, share: Share | None = None) -> Places:
    """Token places of a row's tiles, `tile_tokens` visual tokens each. share: what the row was taken from, if it is a part."""
    starts = row.tile_starts_n
    in_memory = starts < 0
    m = int(in_memory.sum())
    tags = row.memory_tags_mG if m else row.memory_tags_mG.new_zeros(0, 0)
    tag_lengths = (tags >= 0).sum(1).tolist() if tags.shape[1] else [0] * m
    edges = list(itertools.accumulate((tag + tile_tokens for tag in tag_lengths), initial=0))
    spans = [(start, stop, edges[first], edges[last]) for start, stop, first, last in row.reads_s4.tolist()]
    each = torch.arange(tile_tokens)
    tag_at = [torch.arange(edge, edge + length) for edge, length in zip(edges, tag_lengths)]
    tile_ends = torch.tensor(edges[1:], dtype=torch.long)
    shown_at, taken = (starts[~in_memory][:, None] + each).flatten(), None
    if share is not None:
        shown_at, taken = share.spread(shown_at)

    return Places(
        shown_at=send(shown_at, device), taken=None if taken is None else send(taken, device),
        shown=send((~in_memory).nonzero()[:, 0], device), kept=send(in_memory.nonzero()[:, 0], device),
        tile_at=send((tile_ends[:, None] - tile_tokens + each).flatten(), device),
        tag_at=send(torch.cat([torch.zeros(0, dtype=torch.long), *tag_at]), device), tag_ids=send(tags[tags >= 0], device),
        edges=tuple(edges), reads=plan_reads(spans, device))


def splice(hidden_T1H: Tensor, features_ntH: Tensor, at: Tensor, taken: Tensor | None = None) -> Tensor:
    """Tiles of t tokens each into the sequence (or memory), at the places `at`, over whatever stands there. taken: only these of their
    tokens.

    With n = 0 the features still join the graph, so the connector gets a zero gradient and no rank waits for another.
    """
    n, t, width = features_ntH.shape
    tokens = features_ntH.reshape(n * t, 1, width)
    if taken is not None:
        tokens = tokens.index_select(0, taken)
    return hidden_T1H.index_copy(0, at, tokens.to(hidden_T1H.dtype))


def fuse(embedded: Tensor, features_ntH: Tensor, places: Places, remembers: bool) -> tuple[Tensor, Tensor | None]:
    """(hidden [T, 1, H], memory [M, 1, H]) of a row; no memory unless the model `remembers` (NVLM-D does not).

    embedded: [T + tag tokens, 1, H], the row's tokens and behind them those of the memory's tags.
    """
    if not remembers:
        return splice(embedded, features_ntH, places.shown_at, places.taken), None
    tokens = len(embedded) - len(places.tag_ids)
    hidden, tags = embedded[:tokens], embedded[tokens:]
    if len(places.shown_at):
        hidden = splice(hidden, features_ntH.index_select(0, places.shown), places.shown_at, places.taken)
    kept = features_ntH.index_select(0, places.kept)
    memory = splice(embedded.new_zeros(places.memory_tokens, 1, embedded.shape[-1]), kept, places.tile_at)
    return hidden, memory.index_copy(0, places.tag_at, tags) if len(tags) else memory
