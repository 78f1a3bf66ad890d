"""Gated cross-attention of NVLM-X and NVLM-H: the sequence reads the image memory (paper sections 4.3 and 4.4).

It stands in the place that Megatron's TransformerLayer keeps for cross-attention, between self-attention and MLP, which is the
order of the paper's Figure 3. Heads are grouped as the language model's are (Megatron's own CrossAttention refuses that), and the
result is scaled by the tanh of one learned number a layer. A token that may read nothing gets exactly 0.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from nvlm_train.config.schema import CrossAttention, Language
from nvlm_train.model.attention import cumulative, grouped_varlen
from nvlm_train.model.cache import PlacedPrompts, PlacedTokens
from nvlm_train.model.norm import RMSNorm
from nvlm_train.model.recompute import again
from nvlm_train.parallel.device import send


@dataclass(frozen=True)
class Reads:
    """Which tokens of a row read which tokens of its memory.

    spans: on the host, (first token, end, first memory token, end); token ranges ascend without overlap, memory ranges may overlap.
    The rest is the same on the device, for one variable-length call: the places of all reading tokens and of all memory tokens that
    they read (a memory token once for each span that reads it), and where each span begins in these lists.
    """

    spans: tuple[tuple[int, int, int, int], ...]
    query_at: Tensor
    key_at: Tensor
    cu_queries: Tensor
    cu_keys: Tensor
    longest_query: int
    longest_key: int


def plan_reads(spans: list[tuple[int, int, int, int]], device: torch.device) -> Reads:
    """`Reads` of the spans. Raises ValueError for spans out of order or empty."""
    end = 0
    for start, stop, first, last in spans:
        if not (end <= start < stop and 0 <= first < last):
            raise ValueError(f"tokens {start} to {stop} reading memory {first} to {last} after token {end}: spans ascend and are not empty")
        end = stop
    queries, keys = [stop - start for start, stop, _, _ in spans], [last - first for _, _, first, last in spans]

    def places(ranges):
        return send(torch.cat([torch.zeros(0, dtype=torch.long), *(torch.arange(a, b) for a, b in ranges)]), device)

    return Reads(tuple(spans), places((s[0], s[1]) for s in spans), places((s[2], s[3]) for s in spans),
                 cumulative(queries, device), cumulative(keys, device), max(queries, default=0), max(keys, default=0))


def _span_by_span(q: Tensor, k: Tensor, v: Tensor, reads: Reads) -> Tensor:
    """One attention a span, so that no result depends, not even in rounding, on another span."""
    pieces, done = [], 0
    for start, stop, first, last in reads.spans:
        q_, k_, v_ = (x.transpose(0, 1).unsqueeze(0) for x in (q[start:stop], k[first:last], v[first:last]))
        read = F.scaled_dot_product_attention(q_, k_, v_, enable_gqa=True)[0].transpose(0, 1)
        pieces += [q.new_zeros(start - done, *q.shape[1:]), read]
        done = stop
    return torch.cat([*pieces, q.new_zeros(len(q) - done, *q.shape[1:])])


def _in_one_call(q: Tensor, k: Tensor, v: Tensor, reads: Reads) -> Tensor:
    read = grouped_varlen(q.index_select(0, reads.query_at), k.index_select(0, reads.key_at), v.index_select(0, reads.key_at),
                          reads.cu_queries, reads.cu_keys, reads.longest_query, reads.longest_key)
    return torch.zeros_like(q).index_copy(0, reads.query_at, read)


def read_memory(q: Tensor, k: Tensor, v: Tensor, reads: Reads, kernel: str) -> Tensor:
    """q [T, heads, d], k and v [M, kv_heads, d] -> [T, heads, d]; rows of tokens that read nothing are 0.

    kernel: segments | varlen.
    """
    return (_in_one_call if kernel == "varlen" else _span_by_span)(q, k, v, reads)


def _gate(config) -> nn.Parameter:
    """One number. Under sequence parallelism each rank sees a slice of the sequence, so its gradient is summed over the group."""
    gate = nn.Parameter(torch.zeros(1, dtype=config.params_dtype, device=torch.cuda.current_device()))
    gate.sequence_parallel = config.sequence_parallel
    return gate


class HeadNorm(nn.Module):
    """RMSNorm of each head. Its weight serves the heads of every tensor-parallel rank, so its gradient is summed over them."""

    def __init__(self, config, width: int, eps: float):
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(width, dtype=config.params_dtype, device=torch.cuda.current_device()))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.width,), copy_to_tensor_model_parallel_region(self.weight), self.eps)


class GatedCrossAttention(MegatronModule):
    """[T, 1, H] reads memory [M, 1, H] -> [T, 1, H] times tanh(gate). No positions: the tags say which tile is which.

    Megatron's builder signature; `language`, `cross`, `kernel` and `recompute` (whether what is read is computed again in the backward
    pass) come from the layer spec. `reads`, `held` and `shares_row` are set by `ReadingLayer` before each call.
    """

    def __init__(self, config, layer_number: int, language: Language, cross: CrossAttention, kernel: str, recompute: bool = False, **_):
        super().__init__(config)
        self.layer_number, self.head_dim, self.kernel, self.recompute = layer_number, language.head_dim, kernel, recompute
        heads, kv_heads = cross.heads or language.heads, cross.kv_heads or language.kv_heads
        common = {"config": config, "init_method": config.init_method, "bias": False, "skip_bias_add": False}
        self.linear_q = ColumnParallelLinear(language.hidden, heads * self.head_dim, gather_output=False, **common)
        self.linear_kv = ColumnParallelLinear(language.hidden, 2 * kv_heads * self.head_dim, gather_output=False, **common)
        self.linear_proj = RowParallelLinear(heads * self.head_dim, language.hidden, input_is_parallel=True, **common)
        self.q_norm, self.k_norm = (HeadNorm(config, self.head_dim, language.norm_eps) if cross.qk_norm else None for _ in range(2))
        self.gate = _gate(config)
        self.reads: Reads | None = None
        self.held: PlacedPrompts | PlacedTokens | None = None
        self.always_takes_part = self.shares_row = False

    def forward(self, x: Tensor, attention_mask=None, key_value_states: Tensor | None = None, inference_context=None):
        """x: the normed hidden states; key_value_states: the memory (both a slice under sequence parallelism)."""
        if self.held is not None and self.held.decoding:
            out = self.held.attend_memory(self.layer_number, self._queries(x))
        elif not self.reads.spans:
            return self._nothing(x, key_value_states), None
        else:
            q, (k, v) = self._queries(x), self._keys_and_values(key_value_states)
            if self.held is not None:
                self.held.keep_memory(self.layer_number, k, v)
            read = partial(read_memory, reads=self.reads, kernel=self.kernel)
            out = again(read, q, k, v) if self.recompute else read(q, k, v)
        return self.linear_proj(out.flatten(1)[:, None])[0] * torch.tanh(self.gate), None

    def _queries(self, x: Tensor) -> Tensor:
        """[T, heads, d] of the sequence."""
        q = self.linear_q(x)[0].unflatten(-1, (-1, self.head_dim))[:, 0]
        return q if self.q_norm is None else self.q_norm(q)

    def _keys_and_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """[M, kv_heads, d] each of the memory."""
        k, v = self.linear_kv(memory)[0].unflatten(-1, (-1, 2, self.head_dim))[:, 0].unbind(2)   # each group's key, then value
        return k if self.k_norm is None else self.k_norm(k), v

    def _nothing(self, x: Tensor, memory: Tensor) -> Tensor:
        """What a row without pictures reads: zeros that stay in the graph, for what is recomputed or comes behind.

        Where weights must always take part (`Nvlm.use_every_weight`), they do so with no tokens, and get gradients of zeros, in the
        same order as in a row with pictures: ZeRO-2 puts gradients into its messages as they come, and adds up ranks' place by place.
        Where a row is shared out, other ranks may hold its readers: a gradient then comes back through here as it does there, since the
        layers below send messages in their backward.
        """
        nothing = x * 0.0
        if self.shares_row:
            nothing = nothing + memory[:0].sum()
        if self.always_takes_part:
            q, (k, v) = self._queries(x[:0]), self._keys_and_values(memory[:0])
            nothing = nothing + self.linear_proj(q.flatten(1)[:, None])[0].sum() + k.sum() + v.sum()
        return nothing * torch.tanh(self.gate)


class GatedFeedForward(MegatronModule):
    """The residual addition behind cross-attention, followed by a gated SwiGLU of its own (Flamingo's layer has one).

    Stands in Megatron's place for bias, dropout and addition: called with (training, fused), it returns the function to apply.
    """

    def __init__(self, config, language: Language, width: int):
        super().__init__(config)
        common = {"config": config, "init_method": config.init_method, "bias": False, "skip_bias_add": False}
        self.norm = RMSNorm(config, language.hidden, language.norm_eps)
        self.linear_gate = ColumnParallelLinear(language.hidden, width, gather_output=False, **common)
        self.linear_up = ColumnParallelLinear(language.hidden, width, gather_output=False, **common)
        self.linear_fc2 = RowParallelLinear(width, language.hidden, input_is_parallel=True, **common)
        self.gate = _gate(config)

    def forward(self, training: bool, fused: bool):
        return self._add

    def _add(self, read_with_bias, residual: Tensor, dropout: float) -> Tensor:
        read, _ = read_with_bias
        hidden = residual + read
        # Megatron switches gradients on around this call, also in a forward that is to leave no graph.
        with torch.set_grad_enabled(read.requires_grad):
            normed = self.norm(hidden)
            out = self.linear_fc2(F.silu(self.linear_gate(normed)[0]) * self.linear_up(normed)[0])[0]
            return hidden + out * torch.tanh(self.gate)


class ReadingLayer(TransformerLayer):
    """A decoder layer that reads the memory. Megatron gives its cross-attention no packing, so it is handed over here, before
    every forward and every recomputation, from the same carrier as self-attention's."""

    def forward(self, *args, packed_seq_params=None, **rest):
        self.cross_attention.reads, self.cross_attention.held = packed_seq_params.reads, packed_seq_params.held
        self.cross_attention.shares_row = packed_seq_params.split is not None
        return super().forward(*args, packed_seq_params=packed_seq_params, **rest)
