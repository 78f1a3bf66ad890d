"""A frozen encoder that every tensor-parallel rank has whole: each sees its share of a row's tiles, one message brings all to all.

Against an encoder whose weights are split, nothing is sent inside its layers (two all-reduces each), and no head is a dummy one.
It costs the memory of the whole encoder on every rank.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedBase
from torch import Tensor

from nvlm_train.config.split import tiles_each, tiles_of_rank


@dataclass(frozen=True)
class TileShare:
    """alone: a group of this rank only, over which the encoder's linear layers are "split"; tensor: the ranks that share tiles."""

    alone: dist.ProcessGroup
    tensor: dist.ProcessGroup

    def see(self, encode: Callable[[Tensor], Tensor], tiles_nCPP: Tensor) -> Tensor:
        """What `encode` makes of all tiles, [n, L, C], on every rank; without gradients. All ranks of the group call it with the same
        tiles."""
        n, ranks = len(tiles_nCPP), self.tensor.size()
        own, each = encode(tiles_nCPP[tiles_of_rank(n, self.tensor.rank(), ranks)]), tiles_each(n, ranks)
        if ranks == 1 or not n:
            return own
        sent = own.new_zeros(each, *own.shape[1:])
        sent[:len(own)] = own
        seen = own.new_empty(ranks * each, *own.shape[1:])
        dist.all_gather_into_tensor(seen, sent, group=self.tensor)
        return seen[:n]

    def as_replicas(self, sharded_state: dict) -> dict:
        """The encoder's sharded state dict, where Megatron takes every rank's copy of a linear layer for the only one: they are
        replicas, told apart by tensor-parallel rank (second of Megatron's three numbers), and the first one's is written."""
        for shard in sharded_state.values():
            if isinstance(shard, ShardedBase):
                lead, _, data = shard.replica_id
                shard.replica_id = (lead, self.tensor.rank(), data)
        return sharded_state
