"""Megatron-Core without CUDA: the few places where it takes a GPU for granted, answered for the CPU over gloo.

Megatron-Core names "cuda" literally in its schedules, gradient clipping, optimizer and checkpoint code, and has no CPU
target of its own. `enable()` makes those calls mean the CPU, in this process only, and refuses to run where a GPU would be
used. CPU runs prove logic, sharding and recovery; they say nothing about kernels, NCCL or speed.
"""

import torch
from torch.overrides import TorchFunctionMode

from nvlm_train.errors import NvlmError

_CPU = torch.device("cpu")
_enabled = False


class _CudaMeansCpu(TorchFunctionMode):
    """Factory calls that ask for device 'cuda' make CPU tensors, and `tensor.type()` answers CUDA's names.

    The latter since Megatron compares gradient types with the literal string 'torch.cuda.FloatTensor'.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if kwargs:
            device = kwargs.get("device")
            if device is not None and not isinstance(device, int) and torch.device(device).type == "cuda":
                kwargs = {**kwargs, "device": _CPU}
                kwargs.pop("pin_memory", None)
            return func(*args, **kwargs)
        if func is torch.Tensor.type and len(args) == 1:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        return func(*args)


class _NoStream:
    """Stands for a CUDA stream or event: every method does nothing, as a context manager too. A class, since libraries that are
    imported later (transformers) name torch.cuda.Stream in annotations."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        return lambda *args, **kwargs: None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None


def _do_nothing(owner, *names: str) -> None:
    """Each name a function of its own: torch's compiler tells functions and classes of torch apart by identity."""
    for name in names:
        setattr(owner, name, lambda *args, **kwargs: None)


def _patch_torch_cuda() -> None:
    cuda = torch.cuda
    cuda.current_device = lambda: _CPU
    _do_nothing(cuda, "set_device", "synchronize", "empty_cache")
    _do_nothing(cuda.nvtx, "range_push", "range_pop")
    for name in ("current_stream", "stream", "Stream", "Event"):
        setattr(cuda, name, type(name, (_NoStream,), {}))
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = cuda.random.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    cuda.manual_seed = torch.manual_seed
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **kwargs: self


def _patch_megatron() -> None:
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads, optimizer
    from megatron.core.tensor_parallel import random

    # Where Transformer Engine or apex is installed, Megatron has taken their CUDA kernels for norms and copies of gradients.
    for module in (clip_grads, optimizer):
        module.multi_tensor_applier = utils.local_multi_tensor_applier
        module.multi_tensor_scale_impl = utils.local_multi_tensor_scale
    clip_grads.l2_norm_impl = utils.local_multi_tensor_l2_norm
    random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)


def enable() -> None:
    """Let Megatron-Core run on the CPU in this process. Idempotent.

    Raises NvlmError where a GPU is present: the same process would then silently train on the CPU.
    """
    global _enabled
    if _enabled:
        return
    if torch.cuda.is_available():
        raise NvlmError("run.device=cpu on a machine with a GPU: hide it first (CUDA_VISIBLE_DEVICES=), Megatron would mix the two")
    _patch_torch_cuda()
    _patch_megatron()
    _CudaMeansCpu().__enter__()
    _enabled = True
