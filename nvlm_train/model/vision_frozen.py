"""A frozen layer of the vision encoder: its matrix products, and single kernels for all between them (`elementwise`).

The same arithmetic as `vision_layer`, for a forward that nothing will be learned from: Megatron's linear layers, which prepare a backward
pass, are passed by, and their biases join the kernel behind them. Tensor parallel as they are: a sum over the group behind each branch.

Kernels see [n * L, width], so the number of tiles changes one size only.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from torch import Tensor

from nvlm_train.model.elementwise import kernel


def activated(x_Nf: Tensor, bias_f: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """activation(x + bias)."""
    return activation(x_Nf.float() + bias_f.float()).to(x_Nf.dtype)


def added(residual_NC: Tensor, branch_NC: Tensor, bias_C: Tensor, scale_C: Tensor | None) -> Tensor:
    """residual + (branch + bias) * scale (LayerScale, if there is one)."""
    branch = branch_NC.float() + bias_C.float()
    return (residual_NC.float() + (branch if scale_C is None else branch * scale_C.float())).to(residual_NC.dtype)


def square_summed(x_Nw: Tensor) -> Tensor:
    """float32 [N, 1]."""
    return x_Nw.float().square().sum(-1, keepdim=True)


def normed(x_Nw: Tensor, square_N1: Tensor, weight_w: Tensor, width: int, eps: float) -> Tensor:
    """RMSNorm by the sum of squares over the real width."""
    return (x_Nw.float() * torch.rsqrt(square_N1 / width + eps) * weight_w.float()).to(x_Nw.dtype)


@torch.no_grad()
def frozen_layer(layer, x_nLC: Tensor) -> Tensor:
    """What a `VisionLayer` makes of n > 0 tiles."""
    n = len(x_nLC)
    x = x_nLC.flatten(0, 1)
    scales = (layer.ls1, layer.ls2) if layer.layer_scale else (None, None)
    branch = _summed(_attention(layer.attention, layer.norm1(x), n), layer.attention.linear_proj)
    x = kernel(added)(x, branch, layer.attention.linear_proj.bias, scales[0])
    inner = kernel(activated)(F.linear(layer.norm2(x), layer.linear_fc1.weight), layer.linear_fc1.bias, layer.activation)
    x = kernel(added)(x, _summed(inner, layer.linear_fc2), layer.linear_fc2.bias, scales[1])
    return x.unflatten(0, (n, -1))


def _summed(x: Tensor, linear) -> Tensor:
    """A row-parallel linear without its bias."""
    return reduce_from_tensor_model_parallel_region(F.linear(x, linear.weight), linear.tp_group)


def _attention(attention, x_NC: Tensor, n: int) -> Tensor:
    """The heads' outputs, [N, width]."""
    qkv = F.linear(x_NC, attention.linear_qkv.weight, attention.linear_qkv.bias)
    q, k, v = qkv.unflatten(-1, (attention.heads, 3, attention.head_dim)).unbind(-2)
    if attention.qk_norm:
        q, k = (_norm(norm, y.flatten(-2)).unflatten(-1, y.shape[-2:]) for norm, y in ((attention.q_norm, q), (attention.k_norm, k)))
    q, k, v = (y.unflatten(0, (n, -1)).transpose(1, 2) for y in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)


def _norm(norm, x_Nw: Tensor) -> Tensor:
    """A `WideRMSNorm`."""
    square = reduce_from_tensor_model_parallel_region(kernel(square_summed)(x_Nw), norm.group)
    return kernel(normed)(x_Nw, square, norm.weight, norm.real_width, norm.eps)
