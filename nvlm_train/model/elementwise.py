"""Element by element parts of the model as single kernels, by torch's compiler, where the plan says so (`kernels.KernelPlan`).

Each is a pure function of tensors that computes in fp32 and rounds once, forward and backward apart, so what a backward pass keeps is
written here and does not depend on the compiler. Compiled are these functions, not layers: Megatron's layers are full of Python that
torch's tracer would have to be kept happy with in every version, and their matrix products, norms and attention are kernels already.

Sizes that change from row to row (supervised tokens, tiles) are compiled once more at the second size they have, then for all.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@cache
def kernel(function: Callable) -> Callable:
    """The function as a kernel, which is made when it is first called."""
    return torch.compile(function)


def call(function: Callable, *arguments, compiled: bool):
    """function(*arguments), by one kernel if `compiled`. No gradient passes."""
    return (kernel(function) if compiled else function)(*arguments)


# ---------------------------------------------------------------------------------------------------------------- SwiGLU


def swiglu(x_T2f: Tensor) -> Tensor:
    """SiLU of the first half times the second: [T, 2f] -> [T, f]."""
    gate, up = x_T2f.float().chunk(2, -1)
    return (F.silu(gate) * up).to(x_T2f.dtype)


def swiglu_gradient(gradient_Tf: Tensor, x_T2f: Tensor) -> Tensor:
    """Of its input, [T, 2f]."""
    gate, up = x_T2f.float().chunk(2, -1)
    gradient, open_ = gradient_Tf.float(), torch.sigmoid(gate)
    return torch.cat((gradient * up * open_ * (1 + gate * (1 - open_)), gradient * gate * open_), -1).to(x_T2f.dtype)


class SwiGLU(nn.Module):
    """Megatron's builder signature of an activation function. Keeps its input only, holds no parameters."""

    def __init__(self, config):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """[..., 2f] -> [..., f]."""
        return _SwiGLU.apply(x.flatten(0, -2)).unflatten(0, x.shape[:-1])

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None) -> dict:
        return {}


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_T2f: Tensor) -> Tensor:
        ctx.save_for_backward(x_T2f)
        return kernel(swiglu)(x_T2f)

    @staticmethod
    def backward(ctx, gradient_Tf: Tensor) -> Tensor:
        return kernel(swiglu_gradient)(gradient_Tf, *ctx.saved_tensors)


# ------------------------------------------------------------------------------------------------------ rotary positions


def turned(x_Thd: Tensor, cos_Tr: Tensor, sin_Tr: Tensor) -> Tensor:
    """Each head's halves turned by the token's angles (rotate-half convention); r = d / 2."""
    left, right = x_Thd.float().chunk(2, -1)
    cos, sin = cos_Tr[:, None], sin_Tr[:, None]
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(x_Thd.dtype)


def turned_back(x_Thd: Tensor, cos_Tr: Tensor, sin_Tr: Tensor) -> Tensor:
    """The inverse, which is also the gradient."""
    return turned(x_Thd, cos_Tr, -sin_Tr)


def rotate(x_Thd: Tensor, cos_Tr: Tensor, sin_Tr: Tensor) -> Tensor:
    """Rotary positions with a gradient: [T, heads, d] by fp32 cosines and sines [T, d / 2], the same tensors for all layers."""
    return _Rotate.apply(x_Thd, cos_Tr, sin_Tr)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_Thd: Tensor, cos_Tr: Tensor, sin_Tr: Tensor) -> Tensor:
        ctx.save_for_backward(cos_Tr, sin_Tr)
        return kernel(turned)(x_Thd, cos_Tr, sin_Tr)

    @staticmethod
    def backward(ctx, gradient_Thd: Tensor):
        return kernel(turned_back)(gradient_Thd, *ctx.saved_tensors), None, None
