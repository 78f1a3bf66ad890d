"""The nouns. What data gives to the model, and what a step reports; nothing here computes.

Shape legend, used as name suffixes everywhere:
    T  tokens of one packed row (a fixed budget, `data.pack_tokens`)     H  hidden width of the language model
    N  tiles of one packed row, padded to `data.pack_tiles`              n  tiles really present (n <= N)
    S  samples packed into one row                                       V  vocabulary      C,P  channels, pixels
    L  patches of a tile, as the vision encoder gives them (before the pixel shuffle), each C wide
    m  tiles that are cross-attention memory (m <= n)                    M  tokens of that memory
A row is one micro-batch: Megatron sees a batch of one sequence of T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

IMAGE_PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation. `role` is system, user or assistant; `text` may hold `<image>` placeholders."""

    role: str
    text: str


@dataclass(frozen=True)
class Sample:
    """One training or evaluation example as stored in a shard: encoded images and a conversation.

    A text-only sample is an ordinary sample without images. `meta` carries what evaluation needs (task, answers).
    """

    key: str
    source: str
    images: tuple[bytes, ...]
    turns: tuple[Turn, ...]
    meta: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class TileMemory:
    """The tiles of a sample that stand in no sequence but are read by cross-attention (all of NVLM-X's, NVLM-H's regular ones).

    Its m tiles are those whose `tile_starts` is -1, in tile order. A token reads every tile that it comes after, or, if it is
    bound to one tile, that tile only.

    Both kinds of positions ascend with the tiles.

    seen_from_m: int64, position in the sample from which on its tokens read the tile, up to the sample's end
    bound_m2:    int64, [start, end) of the tokens that read this tile and no other (NVLM-X's tag); start = end: there are none
    tags_mG:     int64, the tag that stands before the tile's tokens in the memory (NVLM-H), padded with -1 to the longest, G
    """

    seen_from_m: np.ndarray
    bound_m2: np.ndarray
    tags_mG: np.ndarray


@dataclass(frozen=True)
class EncodedSample:
    """A sample as the model will see it, before packing.

    tokens:       int64 [L], image positions hold the tokenizer's image id
    loss_weights: float32 [L], weight of *predicting the token at this position* (0: not supervised). Already shifted
                  nowhere: packing makes labels out of the next token.
    tiles:        uint8 [n, 3, P, P], all images' tiles in order, a thumbnail last in its image
    tile_starts:  int64 [n], position in `tokens` of the first of each tile's visual tokens; -1 for a tile of `memory`
    memory:       who reads the tiles that are not in the sequence; None if all are (NVLM-D, text)
    features:     [n, L, C], the tiles as a frozen encoder saw them, in the compute dtype; `tiles` is empty then. None: not cached
    """

    key: str
    source: str
    tokens: np.ndarray
    loss_weights: np.ndarray
    tiles: np.ndarray
    tile_starts: np.ndarray
    memory: TileMemory | None = None
    features: torch.Tensor | None = None

    @property
    def length(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class PackedBatch:
    """One packed row: S samples end to end, then padding up to T. The only thing data gives to the model.

    tokens_T:        int64. Padding holds the pad id.
    positions_T:     int64, restart at 0 with every sample (plain 1-D RoPE, one position per visual token).
    labels_T:        int64, the next token of the same sample; 0 where loss_weights_T is 0.
    loss_weights_T:  float32, 0 for padding, prompts, visual tokens and the last token of each sample.
    cu_seqlens:      int32 [segments + 1], from 0 to T. Attention never crosses a boundary. Padding is a segment of its own.
    tiles_nCPP:      uint8 [n, 3, P, P], only real tiles; n may be 0. In memory colours may lie side by side; put into planes and
                     normalised on the device.
    features_nLC:    what a frozen encoder makes of the tiles, in the compute dtype; `tiles_nCPP` is empty then. None: not cached.
    tile_starts_n:   int64, row position of the first visual token of each tile; -1 for the m tiles that are cross-attention memory.
    reads_s4:        int64, who reads what: the tokens [start, end) of the row read the memory tiles [first, last), numbered 0 to m - 1.
                     The token ranges ascend and never overlap; tokens in none of them read nothing. The tile ranges may overlap.
    memory_tags_mG:  int64, ids of the tag that stands before each memory tile's tokens, padded with -1; G is 0 if none has one.
    keys, sources:   of the S samples, in row order (no entry for padding).
    """

    tokens_T: torch.Tensor
    positions_T: torch.Tensor
    labels_T: torch.Tensor
    loss_weights_T: torch.Tensor
    cu_seqlens: torch.Tensor
    tiles_nCPP: torch.Tensor
    tile_starts_n: torch.Tensor
    keys: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    reads_s4: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 4, dtype=torch.long))
    memory_tags_mG: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    features_nLC: torch.Tensor | None = None

    @property
    def real_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.cu_seqlens[len(self.keys)])


@dataclass(frozen=True)
class Slot:
    """One place of the order: which sample it names, and why it stayed empty if it did (`refused` is None if used)."""

    n: int
    key: str
    source: str
    refused: str | None = None


@dataclass(frozen=True)
class StepBatch:
    """What one data-parallel rank trains on in one optimizer step.

    rows: this rank's rows; every rank has equally many (the padded ones are empty rows).
    slots: the slots that this rank was given, refused ones included. Over all ranks: exactly `global_batch` slots.
    cursor: slots of the order consumed once this step is done; all that resuming needs.
    """

    step: int
    rows: Sequence[PackedBatch]
    slots: Sequence[Slot]
    cursor: int


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did, the same on every rank.

    loss is the global weighted mean; source_losses maps a source to (weighted loss sum, weight sum).
    skipped: the update was not applied because loss or gradient was not finite.
    """

    loss: float
    grad_norm: float
    weight: float
    tokens: int
    padded_tokens: int
    tiles: int
    rows: int
    skipped: bool = False
    source_losses: Mapping[str, tuple[float, float]] = field(default_factory=dict)
