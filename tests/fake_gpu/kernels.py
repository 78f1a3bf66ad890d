"""What only CUDA has kernels for, written out: same arguments, same results, and refused where the real ones refuse.

torch 2.13's schemas; the refusals are those of its CUDA sources (flash_api.cpp, Blas.cpp).
"""

import itertools

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def _flash_forward(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *, scale=None,
                   window_size_left=None, window_size_right=None, seqused_k=None, alibi_slopes=None, block_table=None, num_splits=None):
    _check_flash(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k)
    causal = _causal(is_causal, window_size_left, window_size_right)
    out, sums = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)
    for q, k in _segments(cum_seq_q, cum_seq_k):
        scores = _scores(query[q], key[k], causal, scale)
        sums[:, q] = scores.logsumexp(-1)
        chances = (scores - sums[:, q, None]).exp().nan_to_num(0.0)
        out[q] = torch.einsum("hqk,khd->qhd", chances, _wide(value[k], query)).to(out.dtype)
    nothing = torch.empty(0, device=query.device)
    return out, sums, torch.empty(2, dtype=torch.uint64, device=query.device), nothing, nothing


def _flash_backward(grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, rng_state,
                    unused, *, scale=None, window_size_left=None, window_size_right=None):
    _check_flash(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k)
    causal = _causal(is_causal, window_size_left, window_size_right)
    grads = [torch.zeros_like(x) for x in (query, key, value)]
    factor = scale or query.shape[-1] ** -0.5
    groups = query.shape[1] // key.shape[1]
    for q, k in _segments(cum_seq_q, cum_seq_k):
        chances = (_scores(query[q], key[k], causal, scale) - logsumexp[:, q, None]).exp().nan_to_num(0.0)
        above, wide_v, wide_k = grad_out[q].float(), _wide(value[k], query), _wide(key[k], query)
        by_chance = torch.einsum("qhd,khd->hqk", above, wide_v)
        by_score = chances * (by_chance - torch.einsum("qhd,qhd->hq", above, out[q].float())[..., None]) * factor
        grads[0][q] = torch.einsum("hqk,khd->qhd", by_score, wide_k).to(query.dtype)
        grads[1][k] = _narrow(torch.einsum("hqk,qhd->khd", by_score, query[q].float()), groups).to(key.dtype)
        grads[2][k] = _narrow(torch.einsum("hqk,qhd->khd", chances, above), groups).to(value.dtype)
    return tuple(grads)


def _check_flash(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k) -> None:
    heads, width = query.shape[1:]
    if query.dtype not in HALF or not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(f"FlashAttention only support fp16 and bf16 data type, not {query.dtype}, {key.dtype}, {value.dtype}")
    if any(x.dtype != torch.int32 or not x.is_contiguous() or not x.is_cuda for x in (cum_seq_q, cum_seq_k)):
        raise RuntimeError("cu_seqlens_q must have dtype int32, be contiguous and on CUDA")
    if width % 8 or width > 256:
        raise RuntimeError(f"head_size should be a multiple of 8 and at most 256, not {width}")
    if any(x.stride(-1) != 1 for x in (query, key, value)) or heads % key.shape[1]:
        raise RuntimeError("Input tensor must have contiguous last dimension, and heads in whole groups")
    with uncounted():
        for edges, total, longest in ((cum_seq_q, len(query), max_q), (cum_seq_k, len(key), max_k)):
            edges = edges.tolist()
            lengths = [end - start for start, end in itertools.pairwise(edges)]
            if edges[0] != 0 or edges[-1] > total or min(lengths) < 0 or max(lengths) > longest:
                raise RuntimeError(f"reads beyond its memory: edges {edges} of {total}, at most {longest} said")


def _causal(is_causal, left, right) -> bool:
    if left not in (None, -1) or right not in (None, -1, 0):
        raise NotImplementedError(f"a window of ({left}, {right})")
    return is_causal or right == 0


def _segments(cum_seq_q, cum_seq_k):
    with uncounted():
        edges = [[slice(*pair) for pair in itertools.pairwise(x.tolist())] for x in (cum_seq_q, cum_seq_k)]
    return zip(*edges, strict=True)


def _wide(x: Tensor, query: Tensor) -> Tensor:
    return x.float().repeat_interleave(query.shape[1] // x.shape[1], 1)


def _narrow(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(1, (x.shape[1] // groups, groups)).sum(2)


def _scores(q: Tensor, k: Tensor, causal: bool, scale) -> Tensor:
    """[heads, queries, keys]; causal: the last query sees the last key, as flash attention has it."""
    scores = torch.einsum("qhd,khd->hqk", q.float(), _wide(k, q)) * (scale or q.shape[-1] ** -0.5)
    if causal:
        unseen = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1 + len(k) - len(q))
        scores = scores.masked_fill(unseen, float("-inf"))
    return scores


def _addmm_out(total, left, right, out_dtype, *, beta=1, alpha=1, out):
    if left.dtype not in HALF or left.dtype != right.dtype or not out_dtype == total.dtype == out.dtype == torch.float32:
        raise RuntimeError(f"addmm with out_dtype takes halves and adds to fp32, not {left.dtype}, {right.dtype}, {total.dtype}")
    return out.copy_(beta * total + alpha * (left.float() @ right.float()))


def _addmm(total, left, right, out_dtype, *, beta=1, alpha=1):
    return _addmm_out(total, left, right, out_dtype, beta=beta, alpha=alpha, out=torch.empty_like(total))


def _mm(left, right, out_dtype):
    if left.dtype not in HALF or left.dtype != right.dtype or out_dtype != torch.float32:
        raise RuntimeError(f"mm with out_dtype takes halves and gives fp32, not {left.dtype}, {right.dtype}, {out_dtype}")
    return left.float() @ right.float()


def _scaled_mm(left, right, scale_a, scale_b, bias=None, scale_result=None, out_dtype=None, use_fast_accum=False):
    if left.stride(1) != 1 or right.stride(0) != 1:
        raise RuntimeError("_scaled_mm takes a row-major and a column-major matrix")
    if left.shape[1] % 16 or right.shape[0] % 16 or right.shape[1] % 16:
        raise RuntimeError(f"_scaled_mm takes multiples of 16, not {tuple(left.shape)} and {tuple(right.shape)}")
    if torch.float8_e5m2 == left.dtype == right.dtype or {left.dtype, right.dtype} - {torch.float8_e4m3fn, torch.float8_e5m2}:
        raise RuntimeError(f"_scaled_mm does not take {left.dtype} with {right.dtype}")
    if not scale_a.dtype == scale_b.dtype == torch.float32 or scale_a.numel() != 1 or scale_b.numel() != 1:
        raise NotImplementedError("scales other than one fp32 number a matrix")
    product = (left.float() @ right.float()) * scale_a * scale_b
    return (product if bias is None else product + bias).to(out_dtype or torch.bfloat16)


uncounted = None        # set by `gpu.enable`: a block in which what the host waits for is not counted
_library = torch.library.Library("aten", "IMPL")


def install(quiet) -> None:
    global uncounted
    uncounted = quiet
    for name, kernel in {"_flash_attention_forward": _flash_forward, "_flash_attention_backward": _flash_backward, "addmm.dtype": _addmm,
                         "addmm.dtype_out": _addmm_out, "mm.dtype": _mm, "_scaled_mm": _scaled_mm}.items():
        _library.impl(name, kernel, "CUDA")
