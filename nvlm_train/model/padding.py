"""Weights made larger than they are, so that tensor-parallel ranks hold equal parts: dummy heads of the vision encoder (25 heads
become 32 at size 8, as in the released weights), spare rows of the vocabulary. What is added is zero and stays zero.

A parameter says what of it exists (`mark`), its sharded tensor carries that along (`PaddedShard`): initialising, importing and
checkpoints know the real shape, and a checkpoint written under one padding is read under another.
"""

from dataclasses import dataclass, fields

from megatron.core.dist_checkpointing.mapping import ShardedTensor
from torch import nn


def mark(param: nn.Parameter, dim: int, real: int) -> None:
    """Say that only the first `real` entries of the unsharded dimension `dim` exist."""
    param.unpadded = (dim, real)


@dataclass
class PaddedShard(ShardedTensor):
    """A sharded tensor of which, along one dimension of the whole, only the first entries exist: unpadded = (dimension, how many).

    Being a field, that survives the copies which the optimizer makes for its moments.
    """

    unpadded: tuple[int, int] = (0, 0)


def real_shape(shard: ShardedTensor) -> tuple[int, ...]:
    """Global shape without padding."""
    shape = list(shard.global_shape)
    if isinstance(shard, PaddedShard):
        dim, real = shard.unpadded
        shape[dim] = real
    return tuple(shape)


def with_real_shapes(sharded_state: dict) -> dict:
    """The same sharded state dict of a module, its marked parameters as `PaddedShard`."""
    return {name: _padded(value) if hasattr(getattr(value, "data", None), "unpadded") else value
            for name, value in sharded_state.items()}


def _padded(shard: ShardedTensor) -> PaddedShard:
    own = {field.name: getattr(shard, field.name) for field in fields(ShardedTensor)} | {"allow_shape_mismatch": True}
    return PaddedShard(**own, unpadded=shard.data.unpadded)
