"""Reading a checkpoint without running code out of it. The one place where pickles of a checkpoint are let in.

Three pickles lie in a distributed checkpoint, and the libraries read two of them without any guard: torch's index
(`.metadata`, plain `pickle.load`) and every stored object inside the `.distcp` files (`torch.load(weights_only=False)` in
torch's load planner). The third, Megatron's `common.pt`, is guarded by a default that an environment variable switches off.
Hashes do not help here: whoever crafts a shard can craft the manifest beside it. So while `closed_pickles()` is open

* the index goes through an unpickler that knows the dozen data classes an index is made of, and nothing else;
* every `torch.load` is forced to `weights_only=True`, with an empty list of extra classes (Megatron registers some twenty for
  its own use; nothing that we write needs one).

Both are switched for the whole process, which a load is free to do: the switch only ever refuses more.
"""

import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import IO, Any

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.metadata import Metadata

from nvlm_train.errors import CheckpointError

_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = frozenset({
    (_METADATA, "BytesStorageMetadata"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
})
_lock = threading.RLock()


class IndexUnpickler(pickle.Unpickler):
    """Unpickles torch's checkpoint index; any name outside the allow-list is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise CheckpointError(f"the checkpoint's index asks for `{module}.{name}`, which no index needs: refused, nothing was "
                              "run. Do not use this checkpoint unless you know who wrote it")

    def persistent_load(self, pid: Any) -> Any:
        raise CheckpointError("the checkpoint's index refers to outside objects, which no index does: refused")


def read_index(stream: IO[bytes]) -> Metadata:
    """The index of a distributed checkpoint (`.metadata`), read without running code.

    Raises CheckpointError if it is cut, is no index, asks for anything but an index's own classes, or points to files
    outside its folder.
    """
    try:
        index = IndexUnpickler(stream).load()
    except CheckpointError:
        raise
    except Exception as problem:
        raise CheckpointError(f"the checkpoint's index (.metadata) cannot be read: {problem}") from problem
    if type(index) is not Metadata or not isinstance(index.storage_data, dict):
        raise CheckpointError(f"the checkpoint's index (.metadata) holds a {type(index).__name__} instead of an index")
    for place in index.storage_data.values():
        name = getattr(place, "relative_path", None)
        if not isinstance(name, str) or "/" in name or "\\" in name or name in ("", ".", ".."):
            raise CheckpointError(f"the checkpoint's index points to `{name}`, outside the checkpoint's folder: refused")
    return index


def _guarded(load: Any) -> Any:
    """`torch.load` that takes tensors and plain containers only, whatever the caller asked for."""

    def load_data_only(*args: Any, **kwargs: Any) -> Any:
        kwargs["weights_only"] = True
        kwargs.pop("pickle_module", None)
        try:
            return load(*args, **kwargs)
        except pickle.UnpicklingError as problem:
            # torch's own text goes on to advise switching the guard off.
            reason = str(problem).split("Please file an issue")[0].split("WeightsUnpickler error:")[-1].strip()
            raise CheckpointError("an object of the checkpoint is more than tensors, numbers, text and plain containers: "
                                  f"refused, nothing was run ({reason})") from None

    return load_data_only


@contextmanager
def closed_pickles() -> Iterator[None]:
    """While open, whatever torch or Megatron load from a checkpoint goes through the guards of this module."""
    with _lock:
        torch_load, module_pickle = torch.load, filesystem.pickle
        extra = torch.serialization.get_safe_globals()
        torch.load = _guarded(torch_load)
        filesystem.pickle = SimpleNamespace(load=read_index, dump=pickle.dump)
        torch.serialization.clear_safe_globals()
        try:
            yield
        finally:
            torch.load, filesystem.pickle = torch_load, module_pickle
            torch.serialization.add_safe_globals(extra)
