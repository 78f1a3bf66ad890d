"""Norm and clipping of all gradients, with nothing read by the host: Megatron's own read the norm of every parameter one by one where
neither Transformer Engine nor apex is installed, and then that of all."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor


def squared_norm(optimizer, device: torch.device) -> Tensor:
    """float64 [1], over all gradients of the job; the same on every rank. After `prepare_grads`. A collective."""
    total = 0.0
    for part in _parts(optimizer):
        gradients = _for_norm(part)
        # Not of all as one list of numbers: a norm in fp32 neither overflows nor loses small ones, its square might.
        norms = torch.stack(torch._foreach_norm(gradients)).double() if gradients else torch.zeros(1, dtype=torch.float64, device=device)
        square = norms.square().sum()[None]
        dist.all_reduce(square, group=part.get_grad_stats_parallel_group())
        total = total + square
    return total


def clip(optimizer, norm: float, most: float) -> None:
    """Scale all gradients so that their norm is at most `most`. norm: what it is."""
    factor = most / (norm + 1e-6)
    if factor < 1:
        for part in _parts(optimizer):
            gradients = [] if getattr(part, "is_stub_optimizer", False) else list(_gradients(part.get_parameters()))
            if gradients:
                torch._foreach_mul_(gradients, factor)


def _parts(optimizer) -> list:
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _for_norm(part) -> list[Tensor]:
    """Those that this rank counts: what tensor-parallel ranks hold alike is counted by one. megatron-core 0.19 renamed it."""
    if getattr(part, "is_stub_optimizer", False):
        return []
    named = "get_grads_for_grad_norm" if hasattr(part, "get_grads_for_grad_norm") else "get_main_grads_for_grad_norm"
    return getattr(part, named)()


def _gradients(params) -> Iterator[Tensor]:
    """An optimizer with state in fewer bits keeps them apart."""
    for param in params:
        gradient = getattr(param, "decoupled_grad", None)
        gradient = param.grad if gradient is None else gradient
        if gradient is not None:
            yield gradient.detach()
