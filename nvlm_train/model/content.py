"""A fingerprint of weights that does not depend on how they are split: a sum over elements, each hashed with its name and place.

Every rank adds up what it holds, so nothing is gathered. An element whose bits are all zero adds nothing: the padding that one
tensor-parallel size needs and another does not (`padding`) leaves no trace. It finds accidents, not forgeries.
"""

import hashlib

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica
from torch import Tensor

from nvlm_train.model.init import shards

CHUNK = 1 << 22     # elements at a time: a few temporary buffers of 32 MiB


def _signed(number: int) -> int:
    """A number of 64 bits as int64 holds it."""
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number


_MIX = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))       # splitmix64's two factors
_VALUE = _signed(0x9E3779B97F4A7C15)                                     # its step; odd, so no two values collide
_PLACES = tuple(_signed(factor) for factor in (                          # one odd factor for each dimension of a tensor
    0xD6E8FEB86659FD93, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3))
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def content_sum(sharded_state: dict, component: str) -> int:
    """Sum over the elements of a component's main replicas on this rank, modulo 2^64. All ranks' sums name the weights."""
    own = (shard for shard in shards(sharded_state) if shard.key.startswith(component + "."))
    return sum(_shard_sum(shard) for shard in own if is_main_replica(shard.replica_id)) % 2**64


def _shard_sum(shard: ShardedTensor) -> int:
    """Places are counted in the whole tensor, dimension by dimension: padding makes dimensions differ between layouts."""
    data = shard.data.detach().contiguous().view(shard.local_shape)
    *outer, last = (_steps(offset, size, factor, data.device) for offset, size, factor in
                    zip(shard.global_offset, shard.local_shape, _PLACES[:data.ndim], strict=True))
    name = int.from_bytes(hashlib.sha256(shard.key.encode()).digest()[:8], "big")
    places = torch.full((1,), _signed(name), dtype=torch.int64, device=data.device)
    for steps in outer:
        places = (places[:, None] + steps).flatten()
    bits = data.view(_BITS[data.element_size()]).view(len(places), len(last))
    rows = max(1, CHUNK // len(last))
    return sum(_chunk_sum(places[at:at + rows, None] + last, bits[at:at + rows]) for at in range(0, len(places), rows))


def _steps(offset: int, size: int, factor: int, device: torch.device) -> Tensor:
    return torch.arange(offset, offset + size, dtype=torch.int64, device=device) * factor


def _chunk_sum(places: Tensor, bits: Tensor) -> int:
    """int64 arithmetic wraps around, here and in the sum."""
    values = bits.long()
    hashed = _mix(_mix(places) ^ (values * _VALUE))
    return int((hashed * (values != 0)).sum())


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser: every bit of the input changes about half the bits of the output."""
    x = (x ^ _shifted(x, 30)) * _MIX[0]
    x = (x ^ _shifted(x, 27)) * _MIX[1]
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Shifted right with zeros moving in; torch's own shift repeats the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)
