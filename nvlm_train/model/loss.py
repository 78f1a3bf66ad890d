"""The loss of one row: cross-entropy of supervised tokens only, weighted, summed, never averaged here.

Dividing by the global weight of the step (all ranks, all rows) is what makes packed = unpacked and DP 1 = DP n.

The logits are a step's largest tensor, so nothing of their size is made beside them: they are worked on in chunks of tokens, and their
gradient is written over them.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from nvlm_train.kernels import LOGITS_AT_ONCE
from nvlm_train.model.elementwise import call


def token_losses(logits_KV: Tensor, labels_K: Tensor, group: dist.ProcessGroup, compiled: bool = False, at_once: int = LOGITS_AT_ONCE) -> Tensor:
    """float32 [K] cross-entropies of vocabulary-parallel logits [K, V / tensor]; exact over the whole vocabulary.

    Overwrites the logits with their gradient in the backward pass, which therefore can run only once: they must be nobody else's.
    compiled: chunks are read by one kernel each (`elementwise`). at_once: logits in a chunk.
    """
    return _TokenLosses.apply(logits_KV, labels_K, group, compiled, at_once)


def exponentials_summed(logits_cV: Tensor, most_c: Tensor) -> Tensor:
    """float32 [c]: the sums of exp(logit - most)."""
    return torch.sub(logits_cV, most_c[:, None]).exp_().sum(-1)


def overwrite_with_gradient(logits_cV: Tensor, at_c: Tensor, most_c: Tensor, sum_c: Tensor, gradient_c: Tensor) -> None:
    """logits <- (softmax - 1 at the label) times the gradient of the token's loss; computed in fp32, rounded once.

    at_c: the label's column, -1 where another rank has it.
    """
    columns = torch.arange(logits_cV.shape[-1], device=logits_cV.device)
    share = torch.sub(logits_cV, most_c[:, None]).exp_().div_(sum_c[:, None])
    logits_cV.copy_(share.sub_((columns == at_c[:, None]).float()).mul_(gradient_c[:, None]))


class _TokenLosses(torch.autograd.Function):
    """See `token_losses`. One message of three numbers a token to the tensor-parallel group, none in the backward pass."""

    @staticmethod
    def forward(ctx, logits_KV: Tensor, labels_K: Tensor, group: dist.ProcessGroup, compiled: bool, at_once: int) -> Tensor:
        width = logits_KV.shape[-1]
        at_K = labels_K - group.rank() * width
        at_K = torch.where((at_K >= 0) & (at_K < width), at_K, -1)
        own_K = logits_KV.gather(1, at_K.clamp_min(0)[:, None])[:, 0].float()
        own_K = torch.where(at_K >= 0, own_K, 0.0)
        # The largest of a rank whose columns are all padding is minus infinity, which must not be subtracted from itself.
        most_K = logits_KV.amax(-1).float().clamp_min(torch.finfo(torch.float32).min)
        chunks = list(_chunks(logits_KV, at_once))
        sum_K = torch.cat([call(exponentials_summed, logits_KV[c], most_K[c], compiled=compiled) for c in chunks])
        if group.size() > 1:
            most_K, sum_K, own_K = _of_all_ranks(most_K, sum_K, own_K, group)
        ctx.save_for_backward(logits_KV, at_K, most_K, sum_K)
        ctx.chunks, ctx.compiled = chunks, compiled
        return sum_K.log() - (own_K - most_K)

    @staticmethod
    def backward(ctx, gradient_K: Tensor):
        logits_KV, at_K, most_K, sum_K = ctx.saved_tensors
        logits_KV = logits_KV.detach()
        for c in ctx.chunks:
            call(overwrite_with_gradient, logits_KV[c], at_K[c], most_K[c], sum_K[c], gradient_K[c], compiled=ctx.compiled)
        return logits_KV, None, None, None, None


def _chunks(logits_KV: Tensor, at_once: int) -> Iterator[slice]:
    tokens, width = logits_KV.shape
    size = max(at_once // width, 1)
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))


def _of_all_ranks(most_K: Tensor, sum_K: Tensor, own_K: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Largest logit, sum of exponentials and label's logit over the whole vocabulary, from each rank's."""
    own = torch.stack((most_K, sum_K, own_K))
    every = own.new_empty(group.size() * 3, len(most_K))
    dist.all_gather_into_tensor(every, own, group=group)
    every = every.view(group.size(), 3, -1)
    most = every[:, 0].amax(0)
    return most, (every[:, 1] * (every[:, 0] - most).exp()).sum(0), every[:, 2].sum(0)
