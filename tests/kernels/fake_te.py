"""A stand-in for Transformer Engine on the CPU: its names, signatures and duties, computed by torch.

It shows that our wiring and Megatron-Core's is right: which class gets which sizes, names of parameters, what becomes of their
gradients, what attention is told of a packed row, what runs inside fp8's context. It says nothing of kernels or of fp8's numbers.
Signatures are those of transformer_engine 2.20.2, written down in `te_signatures.py`; here a module takes the arguments that
Megatron-Core passes by name, and any other argument is an error, as there.
"""

from contextlib import contextmanager
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.kernels import faking

VERSION = "2.20.2"
CALLS: list[tuple[str, dict]] = []      # (what, facts) of every call of a linear layer or of attention
_RECIPES: list = []                     # contexts entered


def _mark_parallel(param: nn.Parameter, dim: int) -> None:
    """Megatron's attributes, which Transformer Engine sets itself."""
    param.tensor_model_parallel, param.partition_dim, param.partition_stride = True, dim, 1


class _Product(torch.autograd.Function):
    """x @ weight.T whose weight gradient goes straight into `weight.main_grad`, as with fuse_wgrad_accumulation."""

    @staticmethod
    def forward(ctx, x, weight, overwrite):
        ctx.save_for_backward(x, weight)
        ctx.overwrite, ctx.main_grad = overwrite, weight.main_grad
        return x @ weight.t()

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        found = grad.flatten(0, -2).t().float() @ x.flatten(0, -2).float()
        ctx.main_grad.copy_(found) if ctx.overwrite else ctx.main_grad.add_(found)
        if hasattr(weight, "grad_added_to_main_grad"):
            weight.grad_added_to_main_grad = True
        return grad @ weight, torch.full_like(weight, torch.nan), None  # the returned one is not read


class _Base(nn.Module):
    """What TransformerEngineBaseModule does for both linear layers."""

    def _init(self, in_features, out_features, sequence_parallel, fuse_wgrad_accumulation, tp_group, tp_size, init_method, bias,
              return_bias, params_dtype, parallel_mode, device):
        self.tp_group, self.tp_size = tp_group, tp_size if tp_group is None else torch.distributed.get_world_size(tp_group)
        self.parallel_mode, self.use_bias, self.return_bias = parallel_mode, bias, return_bias
        self.sequence_parallel = self.tp_size > 1 and sequence_parallel
        self.fuse_wgrad_accumulation = fuse_wgrad_accumulation
        self.in_features = in_features // self.tp_size if parallel_mode == "row" else in_features
        self.out_features = out_features // self.tp_size if parallel_mode == "column" else out_features
        self.weight = nn.Parameter(torch.empty(self.out_features, self.in_features, device=device, dtype=params_dtype))
        init_method(self.weight)
        _mark_parallel(self.weight, 1 if parallel_mode == "row" else 0)
        if bias:
            self.bias = nn.Parameter(torch.zeros(self.out_features, device=device, dtype=params_dtype))
            if parallel_mode == "column":
                _mark_parallel(self.bias, 0)
            else:
                self.bias.sequence_parallel = self.sequence_parallel

    def _apply_weight(self, x: Tensor, first: bool | None) -> Tensor:
        from megatron.core.tensor_parallel import mappings

        if self.parallel_mode == "column":
            if self.sequence_parallel:
                x = mappings.gather_from_sequence_parallel_region(x, group=self.tp_group)
            elif self.tp_size > 1:
                x = mappings.copy_to_tensor_model_parallel_region(x, group=self.tp_group)
        CALLS.append((type(self).__name__, {
            "recipe": type(_RECIPES[-1]).__name__ if _RECIPES else None, "tokens": x[..., 0].numel(),
            "fused": self.fuse_wgrad_accumulation, "widths": tuple(self.weight.shape), "first": first}))
        if self.fuse_wgrad_accumulation and self.weight.requires_grad and torch.is_grad_enabled():
            out = _Product.apply(x, self.weight, bool(first))
        else:
            out = x @ self.weight.t()
        if self.parallel_mode == "row" and self.tp_size > 1:
            reduce = (mappings.reduce_scatter_to_sequence_parallel_region if self.sequence_parallel
                      else mappings.reduce_from_tensor_model_parallel_region)
            out = reduce(out, group=self.tp_group)
        if self.use_bias and not self.return_bias:
            out = out + self.bias
        return (out, self.bias) if self.return_bias else out

    def get_extra_state(self) -> Tensor:
        """Never empty: as after steps with delayed scaling, when it is a pickle."""
        return torch.full((8,), 7, dtype=torch.uint8)

    def set_extra_state(self, state) -> None:
        if state is not None and state.numel():
            raise RuntimeError("refusing to unpickle extra state (as 2.20.2 does, unless an environment variable allows it)")


class Linear(_Base):
    def __init__(self, in_features, out_features, sequence_parallel=False, fuse_wgrad_accumulation=False, tp_group=None,
                 tp_size=1, get_rng_state_tracker=None, rng_tracker_name=None, init_method=None, bias=True, return_bias=False,
                 params_dtype=None, parallel_mode=None, parameters_split=None, device="cuda", ub_overlap_ag=False,
                 ub_overlap_rs=False, ub_overlap_rs_dgrad=False, ub_bulk_dgrad=False, ub_bulk_wgrad=False, ub_name=None,
                 delay_wgrad_compute=False, symmetric_ar_type=None, save_original_input=False, name=None):
        super().__init__()
        self.save_original_input = save_original_input
        self._init(in_features, out_features, sequence_parallel, fuse_wgrad_accumulation, tp_group, tp_size, init_method, bias,
                   return_bias, params_dtype, parallel_mode, device)

    def forward(self, inp, is_first_microbatch=None, fp8_output=False, fp8_grad=False):
        return self._apply_weight(inp, is_first_microbatch)


class LayerNormLinear(_Base):
    def __init__(self, in_features, out_features, eps=1e-5, sequence_parallel=False, fuse_wgrad_accumulation=False,
                 tp_group=None, tp_size=1, get_rng_state_tracker=None, init_method=None, bias=True, normalization="LayerNorm",
                 return_bias=False, params_dtype=None, parallel_mode=None, return_layernorm_output=False,
                 return_layernorm_output_gathered=False, parameters_split=None, zero_centered_gamma=False, device="cuda",
                 ub_overlap_ag=False, ub_overlap_rs=False, ub_overlap_rs_dgrad=False, ub_bulk_wgrad=False, ub_bulk_dgrad=False,
                 ub_name=None, delay_wgrad_compute=False, symmetric_ar_type=None, name=None):
        super().__init__()
        assert normalization == "RMSNorm" and not zero_centered_gamma
        self.eps = eps
        self.layer_norm_weight = nn.Parameter(torch.ones(in_features, device=device, dtype=params_dtype))
        self._init(in_features, out_features, sequence_parallel, fuse_wgrad_accumulation, tp_group, tp_size, init_method, bias,
                   return_bias, params_dtype, parallel_mode, device)
        self.layer_norm_weight.sequence_parallel = self.sequence_parallel

    def forward(self, inp, is_first_microbatch=None, fp8_output=False, fp8_grad=False):
        return self._apply_weight(F.rms_norm(inp, (inp.shape[-1],), self.layer_norm_weight, self.eps), is_first_microbatch)


class DotProductAttention(nn.Module):
    def __init__(self, num_attention_heads, kv_channels, num_gqa_groups=None, attention_dropout=0.0, qkv_format="sbhd",
                 attn_mask_type="causal", window_size=None, bottom_right_diagonal=None, softcap=0.0, sequence_parallel=False,
                 tp_size=1, get_rng_state_tracker=None, tp_group=None, layer_number=None, attention_type="self", cp_group=None,
                 cp_global_ranks=None, cp_stream=None, cp_comm_type="p2p", softmax_scale=None, softmax_type="vanilla",
                 return_max_logit=False, name=None):
        super().__init__()
        self.heads, self.groups = num_attention_heads // tp_size, num_gqa_groups // tp_size
        self.width, self.scale = kv_channels, softmax_scale
        assert attention_type == "self" and attention_dropout == 0

    def forward(self, query_layer, key_layer, value_layer, attention_mask=None, qkv_format=None, cu_seqlens_q=None,
                cu_seqlens_kv=None, cu_seqlens_q_padded=None, cu_seqlens_kv_padded=None, max_seqlen_q=None, max_seqlen_kv=None,
                attn_mask_type=None, window_size=None, pad_between_seqs=None):
        q, k, v = query_layer, key_layer, value_layer
        assert qkv_format == "thd" and attn_mask_type == "padding_causal" and attention_mask is None    # what thd allows
        assert q.shape == (len(q), self.heads, self.width) and k.shape == v.shape == (len(q), self.groups, self.width)
        assert all(x.is_contiguous() for x in (q, k, v))
        edges = cu_seqlens_q.tolist()
        lengths = [b - a for a, b in pairwise(edges)]
        assert cu_seqlens_q.dtype == torch.int32 and edges == cu_seqlens_kv.tolist() and edges[-1] == len(q)
        assert max(lengths) <= max_seqlen_q == max_seqlen_kv
        CALLS.append(("attention", {"samples": len(lengths), "recipe": type(_RECIPES[-1]).__name__ if _RECIPES else None}))
        place = torch.arange(len(q))
        sample = torch.searchsorted(cu_seqlens_q, place, right=True)
        seen = (sample[:, None] == sample[None]) & (place[:, None] >= place[None])
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=self.scale, enable_gqa=True)
        return out[0].transpose(0, 1).flatten(1)


class RMSNorm(nn.Module):
    """Imported by Megatron-Core; our layers have no norm of Transformer Engine's outside a linear layer."""

    def __init__(self, *args, **kwargs):
        raise AssertionError("no part of the plan uses it")


class FusedAdam(torch.optim.Optimizer):
    """State and groups as the real one keeps them: fp32 moments, `step` and `bias_correction` in the group."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, *, bias_correction=True,
                 adam_w_mode=True, capturable=False, master_weights=False, master_weight_dtype=torch.float32,
                 exp_avg_dtype=torch.float32, exp_avg_sq_dtype=torch.float32, use_decoupled_grad=False,
                 store_param_remainders=False, set_grad_none=None):
        assert adam_w_mode and not master_weights
        super().__init__(params, {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps,
                                  "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None, grad_scaler=None):
        for group in self.param_groups:
            faking.adam_update(self, group)


def apply_rotary_pos_emb(t, freqs, tensor_format="sbhd", start_positions=None, interleaved=False, fused=False, cu_seqlens=None,
                         cp_size=1, cp_rank=0):
    assert fused and tensor_format == "sbhd" and not interleaved and freqs.dtype == torch.float32 and freqs.shape[1:3] == (1, 1)
    assert len(freqs) == len(t) and freqs.shape[-1] == t.shape[-1]
    a, b = t.float().chunk(2, -1)
    return (t.float() * freqs.cos() + torch.cat((-b, a), -1) * freqs.sin()).to(t.dtype)


@contextmanager
def fp8_autocast(enabled=True, calibrating=False, fp8_recipe=None, fp8_group=None, _graph=False):
    assert enabled
    _RECIPES.append(fp8_recipe)
    try:
        yield
    finally:
        _RECIPES.pop()


class Format:
    HYBRID, E4M3, E5M2 = "hybrid", "e4m3", "e5m2"


class _Recipe:
    """The real ones are pydantic dataclasses, which pass over arguments that they do not know: Megatron-Core relies on it."""

    FIELDS: ClassVar[dict[str, Any]] = {}

    def __init__(self, **given):
        self.__dict__.update(self.FIELDS | {name: value for name, value in given.items() if name in self.FIELDS})


class DelayedScaling(_Recipe):
    FIELDS: ClassVar = {"margin": 0, "fp8_format": Format.HYBRID, "amax_history_len": 1024, "amax_compute_algo": "max",
                        "reduce_amax": True, "fp8_dpa": False, "fp8_mha": False}


class Float8CurrentScaling(_Recipe):
    FIELDS: ClassVar = {"fp8_format": Format.HYBRID, "fp8_dpa": False, "fp8_mha": False}


class MXFP8BlockScaling(_Recipe):
    FIELDS: ClassVar = {"margin": 0, "fp8_format": Format.E4M3, "fp8_dpa": False, "fp8_mha": False}


class _Unused:
    """A base class that Megatron-Core derives from on import."""


class FP8GlobalStateManager:
    @classmethod
    def is_fp8_enabled(cls) -> bool:
        return bool(_RECIPES)


MODULES = {
    "": {"__version__": VERSION},
    ".common": {},
    ".common.recipe": {"Format": Format, "DelayedScaling": DelayedScaling, "Float8CurrentScaling": Float8CurrentScaling,
                       "MXFP8BlockScaling": MXFP8BlockScaling},
    ".pytorch": {"Linear": Linear, "LayerNormLinear": LayerNormLinear, "RMSNorm": RMSNorm, "LayerNorm": RMSNorm,
                 "DotProductAttention": DotProductAttention, "GroupedLinear": type("GroupedLinear", (nn.Module,), {}),
                 "fp8_autocast": fp8_autocast, "autocast": fp8_autocast, "Fp8Padding": _Unused, "Fp8Unpadding": _Unused},
    ".pytorch.fp8": {"FP8GlobalStateManager": FP8GlobalStateManager, "fp8_autocast": fp8_autocast, "fp8_model_init": None},
    ".pytorch.attention": {},
    ".pytorch.attention.rope": {"apply_rotary_pos_emb": apply_rotary_pos_emb},
    ".pytorch.distributed": {"CudaRNGStatesTracker": type("CudaRNGStatesTracker", (), {}), "activation_recompute_forward": None},
    ".pytorch.router": dict.fromkeys(("fused_compute_score_for_moe_aux_loss", "fused_moe_aux_loss",
                                      "fused_topk_with_score_function")),
    ".pytorch.optimizers": {"FusedAdam": FusedAdam, "FusedSGD": FusedAdam, "multi_tensor_applier": None,
                            "multi_tensor_scale": None, "multi_tensor_l2norm": None, "multi_tensor_scale_tensor": None},
    ".pytorch.ops": {"Sequential": _Unused, "FusibleOperation": _Unused},
    ".pytorch.tensor": {"QuantizedTensor": type("QuantizedTensor", (torch.Tensor,), {})},
}


def named(name: str):
    """What stands here at a dotted name below `transformer_engine`."""
    module, rest = "", name.split(".")
    while f"{module}.{rest[0]}" in MODULES:
        module = f"{module}.{rest.pop(0)}"
    found = MODULES[module][rest.pop(0)]
    for own in rest:
        found = getattr(found, own)
    return found


def install() -> None:
    """Put it in the place of the package, before Megatron-Core is imported."""
    faking.install("transformer_engine", {f"transformer_engine{name}": names for name, names in MODULES.items()})
