"""Attention of one context-parallel rank: its own queries, and the keys and values of all ranks.

Keys and values are gathered over the group before attention, as Llama 3 does (arXiv 2407.21783, section 3.3.2), since grouped queries
leave few of them; on the way back their gradients are added up in fp32 and each rank gets its own tokens'. What each rank sends in a
layer is reckoned in docs/context_parallel.md.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from nvlm_train.model.attention import cumulative, grouped_varlen
from nvlm_train.model.context import Share
from nvlm_train.parallel.device import send


class _Gathered(torch.autograd.Function):
    """[n, ...] of every rank, one behind the other: [ranks * n, ...]. Backward: the sum of all ranks' gradients, each rank's part."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup, size: int) -> Tensor:
        ctx.group, ctx.size = group, size
        out = x.new_empty(size * len(x), *x.shape[1:])
        dist.all_gather_into_tensor(out, x.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        whole = grad.float().contiguous()       # added up in fp32: every rank's queries have read these keys
        own = whole.new_empty(len(whole) // ctx.size, *whole.shape[1:])
        dist.reduce_scatter_tensor(own, whole, group=ctx.group)
        del whole       # a row's widest tensor when it is the visual tokens'
        return own.to(grad.dtype), None, None


@dataclass(frozen=True)
class Split:
    """A share on its way through the layers.

    key_at: int64, places among the gathered tokens of every piece's keys, piece behind piece; cu_queries, cu_keys: int32, where each
    piece begins among the rank's queries and among these keys. All three on the device.
    """

    share: Share
    key_at: Tensor
    cu_queries: Tensor
    cu_keys: Tensor

    def gather(self, x: Tensor) -> Tensor:
        """[n, ...] of every rank -> [ranks * n, ...]. A collective, in backward too."""
        return _Gathered.apply(x, self.share.context.group, self.share.context.size)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, kernel: str, scale: float | None, causal: dict) -> Tensor:
        """This rank's q [T / ranks, heads, d], k and v [T / ranks, kv_heads, d] -> [T / ranks, heads, d].

        kernel, causal: as in `attention.PackedCausalAttention`.
        """
        both = self.gather(torch.cat((k, v), 1)).index_select(0, self.key_at)
        keys, values = both.split(k.shape[1], 1)
        if kernel != "varlen":
            return self._piece_by_piece(q, keys, values, scale)
        # A piece's last query reads its last key: flash attention lays the causal mask to the lower right where lengths differ.
        queries, lengths = zip(*self._lengths(), strict=True)
        extra = causal if scale is None else causal | {"scale": scale}
        return grouped_varlen(q, keys, values, self.cu_queries, self.cu_keys, max(queries), max(lengths), **extra)

    def _piece_by_piece(self, q: Tensor, keys: Tensor, values: Tensor, scale: float | None) -> Tensor:
        """One call a piece; a sample's beginning is computed as where it is not split."""
        queries, lengths = zip(*self._lengths(), strict=True)
        out = []
        for parts in zip(q.split(queries), keys.split(lengths), values.split(lengths), strict=True):
            q_, k_, v_ = (x.transpose(0, 1).unsqueeze(0) for x in parts)
            n, m = q_.shape[2], k_.shape[2]
            mask = None if n == m else torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
            read = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True)
            out.append(read[0].transpose(0, 1))
        return torch.cat(out)

    def _lengths(self) -> list[tuple[int, int]]:
        """(queries, keys) of each piece."""
        return [(piece.end - piece.start, piece.end - piece.first) for piece in self.share.pieces]


def split_attention(share: Share, device: torch.device) -> Split:
    """The share as the layers need it."""
    at = torch.cat([share.gathered_at[piece.first:piece.end] for piece in share.pieces])
    return Split(share, send(at, device), cumulative((piece.end - piece.start for piece in share.pieces), device),
                 cumulative((piece.end - piece.first for piece in share.pieces), device))
