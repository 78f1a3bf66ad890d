"""Counts how often the host reads what a device has computed, on the CPU, where nothing tells the two apart by itself.

A tensor stands for one on the device if it is a parameter or buffer, was sent there (`parallel.device.send`), came out of a collective,
or was computed from such a tensor. Reading one makes the host wait: its value, or a size that depends on values.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from nvlm_train.engine import job
from nvlm_train.model import cross_attention, fusion, nvlm

_SENDERS = (job, nvlm, fusion, cross_attention)
# By Python only, never dispatched on the CPU; the value of one number is asked below.
_READS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__}
_ATEN = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.masked_select.default", "aten.equal.default",
         "aten.repeat_interleave.Tensor"}


class _Device(TorchDispatchMode):
    """Follows device tensors by their storage."""

    def __init__(self):
        super().__init__()
        self.reads: list[str] = []
        self._storages: dict[int, StorageWeakRef] = {}      # weak references also keep an address from being given again

    def add(self, tensor: Tensor) -> Tensor:
        self._storages[tensor.untyped_storage()._cdata] = StorageWeakRef(tensor.untyped_storage())
        return tensor

    def has(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        out = func(*args, **(kwargs or {}))
        here = any(self.has(tensor) for tensor in tensors)
        if here and (str(func) in _ATEN or self._by_mask(func, args)):
            self.reads.append(str(func))
        if here or func.namespace == "c10d":
            changed = tensors if func._schema.is_mutable or func.namespace == "c10d" else []
            for leaf in (*tree_iter(out), *changed):
                if isinstance(leaf, Tensor):
                    self.add(leaf)
        return out

    def _by_mask(self, func, args) -> bool:
        """Places by a mask that the device holds: their number is read. (One number put there is not: that becomes a fill.)"""
        if str(func) not in ("aten.index.Tensor", "aten.index_put_.default", "aten.index_put.default"):
            return False
        masks = [index for index in args[1] if isinstance(index, Tensor) and index.dtype == torch.bool]
        filled = len(args) > 2 and args[2].numel() == 1
        return bool(masks) and not filled


class _Asked(TorchFunctionMode):
    def __init__(self, device: _Device):
        super().__init__()
        self._device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _READS and self._device.has(args[0]):
            self._device.reads.append(func.__name__)
        return func(*args, **(kwargs or {}))


def counted_reads(engine, act: Callable[[], object]) -> list[str]:
    """Names of the operations by which the host read the device during `act`."""
    device = _Device()
    own = [tensor for stage in engine.stages() for tensor in (*stage.parameters(), *stage.buffers())]
    buffers = [tensor for chunk in engine.chunks for buffer in chunk.buffers for tensor in (buffer.param_data, buffer.grad_data)]
    for tensor in (*own, *(tensor for tensor in buffers if tensor is not None)):
        device.add(tensor)
    real = {module: module.send for module in _SENDERS}
    for module in _SENDERS:
        module.send = lambda tensor, to: device.add(tensor.clone())     # what stays behind is the host's
    try:
        with device, _Asked(device):
            act()
    finally:
        for module, send in real.items():
            module.send = send
    return device.reads
