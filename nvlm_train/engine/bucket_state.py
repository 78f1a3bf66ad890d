"""The optimizer's state of buffers that are cut into buckets, for checkpoints.

Megatron (0.16.1, 0.19.2) collects the state of a buffer without the padding behind each bucket, and then cuts the parameters out where they
lie with it: from the second bucket on a checkpoint would hold numbers of the parameter beside. Put back here.
"""

from functools import partial
from typing import Any

import torch


def keep_padding(optimizer: Any) -> None:
    """Have Megatron's optimizer (or each of a chain) describe its state with the padding between buckets."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not getattr(part, "is_stub_optimizer", False) and any(len(buffer.buckets) > 1 for buffer in part.buffers):
            part.get_parameter_state_dp_zero = partial(_with_padding, part.buffers, part.get_parameter_state_dp_zero)


def _with_padding(buffers: list, collect, **how) -> dict | None:
    """collect: Megatron's method, which gives {buffer: {dtypes: {"param" | "exp_avg" | "exp_avg_sq": 1-D tensor, …}}} or None."""
    state = collect(**how)
    for number, buffer in enumerate(buffers if state else ()):
        for tensors in state[number].values():
            for key, value in tensors.items():
                if isinstance(value, torch.Tensor):
                    tensors[key] = _spread(value, buffer)
    return state


def _spread(bare: torch.Tensor, buffer) -> torch.Tensor:
    """[numbers of all buckets] -> [numbers of the buffer], padding zero."""
    whole, start = bare.new_zeros(buffer.numel), 0
    for bucket in buffer.buckets:
        whole[bucket.offset:bucket.offset + bucket.numel_unpadded] = bare[start:start + bucket.numel_unpadded]
        start += bucket.numel_unpadded
    return whole
