"""Core attention of packed rows: causal, grouped-query, never across a sample's boundary.

Megatron's unfused local attention has no packing and holds T x T scores; this part takes its place in the layer spec. On a
GPU it is torch's variable-length flash attention; on the CPU one causal call per sample, which is block-diagonal by
construction, so that a sample's result cannot depend, not even in rounding, on its neighbours in the row.
"""

import inspect
import itertools
from collections.abc import Callable, Iterable
from functools import cache

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor, nn

from nvlm_train.model.elementwise import rotate
from nvlm_train.parallel.device import send

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch < 2.10
    varlen_attn = None


@cache
def _arguments(function: Callable) -> frozenset[str]:
    """Names of its parameters: varlen_attn's differ from version to version."""
    return frozenset(inspect.signature(function).parameters)


def packing(cu_seqlens: Tensor, longest: int, edges: list[int]) -> PackedSeqParams:
    """What a row's layers need to know of its samples, in the carrier that Megatron passes to every core attention.

    cu_seqlens: int32 [segments + 1] on the device; longest: tokens of the longest segment (a bound serves);
    edges: the same boundaries on the host, so that no layer waits for the device. `sbhd` keeps Megatron's own per-sample
    rotary path off: positions are given explicitly.
    """
    params = PackedSeqParams(qkv_format="sbhd", cu_seqlens_q=cu_seqlens, cu_seqlens_kv=cu_seqlens,
                             max_seqlen_q=longest, max_seqlen_kv=longest)
    params.edges = edges
    # Set by those who have them: cross-attention's spans, a KV cache, cosines and sines of positions that Megatron did not apply, a
    # context-parallel rank's share.
    params.reads = params.held = params.rotary = params.split = None
    return params


def cumulative(lengths: Iterable[int], device: torch.device) -> Tensor:
    """Where each of so many tokens begins, and where the last end: int32 [n + 1], as variable-length kernels want it."""
    return send(torch.tensor([0, *lengths]).cumsum(0).int(), device)


def _causal_arguments() -> dict:
    """How this torch spells "causal": an argument from 2.12 on, a window before."""
    return {"is_causal": True} if "is_causal" in _arguments(varlen_attn) else {"window_size": (-1, 0)}


def grouped_varlen(q: Tensor, k: Tensor, v: Tensor, cu_queries: Tensor, cu_keys: Tensor, longest_query: int, longest_key: int,
                   **extra) -> Tensor:
    """torch's varlen_attn for q [T, heads, d], k and v [M, kv_heads, d]; a torch without its grouped-query form gets copies."""
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1 and "enable_gqa" in _arguments(varlen_attn):
        extra["enable_gqa"] = True
    elif repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    return varlen_attn(q.contiguous(), k.contiguous(), v.contiguous(), cu_queries, cu_keys, longest_query, longest_key, **extra)


def _by_segment(q: Tensor, k: Tensor, v: Tensor, edges: list[int], scale: float | None) -> Tensor:
    """One causal attention a segment. q [T, heads, d], k and v [T, kv_heads, d] -> [T, heads, d]."""
    out = []
    for start, end in itertools.pairwise(edges):
        qs, ks, vs = (x[start:end].transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out.append(F.scaled_dot_product_attention(qs, ks, vs, is_causal=True, scale=scale, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(out)


def _by_mask(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float | None) -> Tensor:
    """One call under a block-diagonal causal mask, for GPUs whose torch has no variable-length attention."""
    place = torch.arange(len(q), device=q.device)
    segment = torch.searchsorted(cu_seqlens, place, right=True)
    mask = (segment[:, None] == segment[None]) & (place[:, None] >= place[None])
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)[0].transpose(0, 1)


class PackedCausalAttention(nn.Module):
    """Megatron core-attention builder signature; holds no parameters. kernel: segments | mask | varlen (`kernels.KernelPlan`)."""

    def __init__(self, config, layer_number: int, attn_mask_type, attention_type: str, attention_dropout=None,
                 softmax_scale: float | None = None, *, kernel: str, **_):
        super().__init__()
        self.layer_number, self.scale, self.kernel = layer_number, softmax_scale, kernel
        self.causal = _causal_arguments() if kernel == "varlen" else {}

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask=None, *, attn_mask_type=None,
                attention_bias=None, packed_seq_params: PackedSeqParams) -> Tensor:
        """query [T, 1, heads, d], key and value [T, 1, kv_heads, d] -> [T, 1, heads * d]. One row a micro-batch."""
        if query.shape[1] != 1:
            raise ValueError(f"a micro-batch is one packed row, but {query.shape[1]} sequences came")
        q, k, v = query[:, 0], key[:, 0], value[:, 0]
        packed = packed_seq_params
        if packed.rotary is not None:
            q, k = rotate(q, *packed.rotary), rotate(k, *packed.rotary)
        if packed.held is not None and not packed.held.decoding:
            packed.held.keep(self.layer_number, k, v, packed.edges)
        if packed.held is not None and packed.held.decoding:
            out = packed.held.attend(self.layer_number, q, k, v, self.scale)
        elif packed.split is not None:
            out = packed.split.attend(q, k, v, self.kernel, self.scale, self.causal)
        elif self.kernel == "segments":
            out = _by_segment(q, k, v, packed.edges, self.scale)
        elif self.kernel == "mask":
            out = _by_mask(q, k, v, packed.cu_seqlens_q, self.scale)
        else:
            extra = {} if self.scale is None else {"scale": self.scale}
            out = grouped_varlen(q, k, v, packed.cu_seqlens_q, packed.cu_seqlens_kv, packed.max_seqlen_q, packed.max_seqlen_kv,
                                 **self.causal, **extra)
        return out.reshape(len(q), 1, -1)
