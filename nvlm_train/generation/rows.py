"""Rows for a generator: one of whole prompts, packed as in training, or one of a new token each."""

from collections.abc import Sequence

import numpy as np
import torch

from nvlm_train.config.split import padded_size
from nvlm_train.contracts import EncodedSample, PackedBatch
from nvlm_train.data.layout import reads
from nvlm_train.data.packing import pack_row

GRAIN = 64      # tokens: of few lengths of rows, allocators and compiled kernels have seen most before


def prompt_row(prompts: Sequence[EncodedSample], pad_id: int, tile_size: int, multiple: int, longest: int) -> PackedBatch:
    """Prompts end to end, in a row no longer than they need, or of `longest` tokens at most. multiple: of its length."""
    used = sum(prompt.length for prompt in prompts)
    whole = padded_size(max(1, used), padded_size(GRAIN, multiple))
    return pack_row(prompts, max(used, min(longest, whole)), pad_id, tile_size)


def tiles_read_next(prompts: Sequence[EncodedSample]) -> list[tuple[int, int]]:
    """Of each prompt in a row, the row's memory tiles [first, last) that its next token reads."""
    found, before = [], 0
    for prompt in prompts:
        memory, tiles = prompt.memory, (0, 0)
        if memory is not None:
            table = reads(memory, prompt.length + 1)
            if len(table) and table[-1, 1] > prompt.length:
                tiles = tuple(table[-1, 2:].tolist())
        found.append((before + tiles[0], before + tiles[1]))
        before += 0 if memory is None else len(memory.seen_from_m)
    return found


def token_row(tokens: Sequence[int], positions: Sequence[int], pad_id: int, tile_size: int, multiple: int) -> PackedBatch:
    """One token of each sequence, at its own position, and padding up to a multiple. At least one token."""
    length = padded_size(max(1, len(tokens)), multiple)
    spare = length - len(tokens)
    zeros = torch.zeros(length)
    return PackedBatch(
        tokens_T=torch.tensor([*tokens, *[pad_id] * spare]), positions_T=torch.tensor([*positions, *[0] * spare]),
        labels_T=zeros.long(), loss_weights_T=zeros, cu_seqlens=torch.arange(length + 1, dtype=torch.int32),
        tiles_nCPP=torch.from_numpy(np.empty((0, 3, tile_size, tile_size), dtype=np.uint8)), tile_starts_n=torch.zeros(0, dtype=torch.long))
