"""What a frozen vision encoder is asked beside training: which weights it has, and what it makes of tiles (the feature cache)."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from nvlm_train.contracts import PackedBatch
from nvlm_train.model.content import content_sum
from nvlm_train.model.nvlm import Nvlm

_HALF = 32


def encoder_fingerprint(stages: Sequence[Nvlm], device: torch.device) -> str:
    """16 hex digits of a sum over every element of the encoder, each counted on the one rank that holds its main replica.

    stages: this rank's. A collective of all ranks of the job.
    """
    own = sum(content_sum(stage.sharded_state_dict(), "vision") for stage in stages if hasattr(stage, "vision")) % 2**64
    # In halves, so that no backend has to add numbers of 64 bits that overflow.
    halves = torch.tensor([own >> _HALF, own % 2**_HALF], dtype=torch.int64, device=device)
    dist.all_reduce(halves)
    high, low = halves.tolist()
    return f"{((high << _HALF) + low) % 2**64:016x}"


@torch.no_grad()
def see(stages: Sequence[Nvlm], row: PackedBatch, device: torch.device) -> torch.Tensor | None:
    """[n, L, C] in host memory, from the stage of this rank that has the encoder; None if none does."""
    encoders = [stage.vision for stage in stages if hasattr(stage, "vision")]
    return encoders[0](row.tiles_nCPP.to(device, non_blocking=True)).cpu() if encoders else None
