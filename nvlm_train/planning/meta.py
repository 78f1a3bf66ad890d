"""A machine that is not there: any rank of any job, in one process, on tensors that have shapes and no memory.

torch's own fake process group answers every collective at once, its meta device computes shapes and dtypes only, and what asks for
CUDA is given meta, so that the model takes the way that it takes on a GPU: flash attention, fused norms, bf16.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel.random import CheckpointFunction
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from nvlm_train.config.schema import Layout
from nvlm_train.errors import NvlmError
from nvlm_train.model import elementwise
from nvlm_train.parallel import cpu
from nvlm_train.parallel.groups import Groups, clear, lay_out

META = torch.device("meta")
_CUDA_NAMES = {torch.float32: "torch.cuda.FloatTensor", torch.bfloat16: "torch.cuda.BFloat16Tensor"}


class _FusedRMSNorm(torch.autograd.Function):
    """What torch's fused kernel keeps on a GPU: input, weight and one fp32 number a row. (On meta it falls apart into many
    operations that keep their fp32 copies.)"""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(*x.shape[:-1], 1, dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, _ = ctx.saved_tensors
        wanted = zip(ctx.needs_input_grad, (x, weight), strict=True)
        return tuple(torch.empty_like(tensor) if needed else None for needed, tensor in wanted)


def _rms_norm(x: Tensor, width, weight: Tensor, eps: float) -> Tensor:
    return _FusedRMSNorm.apply(x, weight)


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask=None, dropout_p: float = 0.0, is_causal: bool = False,
                     scale: float | None = None, enable_gqa: bool = False) -> Tensor:
    """F.scaled_dot_product_attention by the flash kernel, which it chooses on a GPU for the encoder's and the resampler's calls."""
    if attn_mask is not None or enable_gqa:
        raise NvlmError("the model asked for an attention that the simulated GPU has no fused kernel for")
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, False, scale=scale)[0]


def _as_one_kernel(function: Callable) -> Callable:
    """In place of torch.compile: what the function gives, and nothing of what it makes on the way."""
    def run(*arguments):
        with _disable_current_modes():
            out = function(*arguments)
        return tree_map_only(Tensor, torch.empty_like, out)     # made where it is seen

    return run


class _MetaMeansCuda(TorchFunctionMode):
    """Tensors asked of CUDA are made on meta, and tensors on meta say that they are on CUDA."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if device is not None and not isinstance(device, int) and torch.device(device).type == "cuda":
            kwargs["device"] = META
        if func is F.rms_norm and args[0].device == META:
            return _rms_norm(*args, **kwargs)
        if func is F.scaled_dot_product_attention and args[0].device == META:
            return _flash_attention(*args, **kwargs)
        if func == torch.Tensor.is_cuda.__get__:
            return args[0].device == META
        if func is torch.Tensor.type and len(args) == 1:
            return _CUDA_NAMES.get(args[0].dtype, str(args[0].dtype))
        return func(*args, **kwargs)


@contextmanager
def machine(layout: Layout, rank: int, world: int) -> Iterator[Groups]:
    """Be `rank` of a job of `world` processes with this layout; everything is given back at the end.

    Raises NvlmError if this process has joined a real job, ConfigError if the layout does not divide the world. Prepares
    Megatron-Core for the CPU (`parallel.cpu`), which stays; a process of its own is cleanest.
    """
    if dist.is_initialized():
        raise NvlmError("this process has joined a job already: simulate ranks in a process of their own")
    cpu.enable()
    current, new_group, backward = torch.cuda.current_device, dist.new_group, CheckpointFunction.backward
    compile_ = torch.compile

    def recomputing(*args):
        with _MetaMeansCuda():      # a backward pass runs outside of the mode that it was started in
            return backward(*args)

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    elementwise.kernel.cache_clear()
    try:
        torch.compile = _as_one_kernel
        torch.cuda.current_device = lambda: META
        dist.new_group = lambda *args, **kwargs: new_group(*args, **{**kwargs, "backend": "fake"})     # Megatron asks for gloo too
        CheckpointFunction.backward = staticmethod(recomputing)
        with _MetaMeansCuda():
            yield lay_out(layout, seed=1)
    finally:
        clear()
        dist.destroy_process_group()
        torch.cuda.current_device, dist.new_group, torch.compile = current, new_group, compile_
        elementwise.kernel.cache_clear()
        CheckpointFunction.backward = staticmethod(backward)
