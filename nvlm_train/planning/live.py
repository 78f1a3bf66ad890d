"""How many bytes of tensors live at once: every storage counted once, from the operation that makes it to its end."""

import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Live(TorchDispatchMode):
    """Counts storages that come into being while the mode is on, on any device, meta included.

    now, peak: bytes that live, and at most did. Memory that a kernel takes and gives back inside one operation is not seen. ignore:
    tensors that exist before (parameters, inputs).
    """

    def __init__(self, ignore: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, object] = {}
        for tensor in ignore:
            self._watch(tensor, 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                self._watch(leaf, None)
        return out

    def _watch(self, tensor: Tensor, size: int | None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if size is None else size
        self._known[key] = weakref.finalize(storage, self._gone, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.now -= size


class Saved:
    """Bytes that a forward keeps for its backward: each storage once, without those of `ignore` (parameters, inputs). Holds none."""

    def __init__(self, ignore: Iterable[Tensor] = ()):
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignore}
        self._kept: dict[int, int] = {}

    def __call__(self) -> AbstractContextManager:
        """Count what is saved inside this context."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._ignored and key not in self._kept:
            self._kept[key] = storage.nbytes()
            weakref.finalize(storage, self._kept.pop, key, None)
        return tensor.detach()      # an operation that keeps its own result would hold itself through it

    @property
    def bytes(self) -> int:
        """What is still kept."""
        return sum(self._kept.values())
