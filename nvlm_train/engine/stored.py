"""The weights of a published checkpoint, one whole tensor at a time, without an engine: for exporting.

Whatever layout wrote it, a tensor is put together from the pieces that its ranks wrote; beside it only the piece being read is in
memory. The files can be verified first, and nothing of them is run: the index goes through the allow-list, tensors through
torch's `weights_only` reader (`safe_unpickle`).
"""

import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import checkpoint as distributed_checkpoint
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from nvlm_train.engine.folders import resolve
from nvlm_train.engine.manifest import Manifest, problem_with_file
from nvlm_train.engine.safe_unpickle import closed_pickles, read_index
from nvlm_train.engine.sharded_write import INDEX
from nvlm_train.errors import CheckpointError


class _Reader(FileSystemReader):
    """torch's reader, which would read the index anew for every tensor."""

    def __init__(self, folder: Path, index: Metadata):
        super().__init__(folder)
        self._index = index

    def read_metadata(self, *args, **kwargs) -> Metadata:
        self._index.storage_meta = self._index.storage_meta or StorageMeta()
        self._index.storage_meta.load_id = self.load_id
        return self._index


class StoredWeights:
    """The model's tensors in a checkpoint (optimizer state is left alone).

    folder: the step folder. manifest: what it says of itself. dtypes, shapes: by whole-model name; shapes are without what tensor
    parallelism padded, but for checkpoints written before manifests knew that.
    """

    def __init__(self, path: str | Path):
        """path: a run, a stage or a step folder. Raises CheckpointError if it holds no complete checkpoint, or the index is
        damaged."""
        self.folder = resolve(path)
        self.manifest = Manifest.read(self.folder)
        stored = {name: entry for name, entry in self.manifest.contents["model"].items() if entry[0] != "object"}
        self.dtypes = {name: getattr(torch, dtype) for name, (dtype, _) in stored.items()}
        self.shapes = {name: tuple(shape) for name, (_, shape) in stored.items()}
        self._verify_file(INDEX)
        with (self.folder / INDEX).open("rb") as stream:
            self._index = read_index(stream)
        if absent := sorted(set(stored) - set(self._index.state_dict_metadata)):
            raise CheckpointError(f"{self.folder}: the manifest names {absent[0]}, which the index does not hold ({len(absent)} "
                                  "such)")

    def files_of(self, names: Iterable[str]) -> list[str]:
        """The files in which these tensors lie."""
        wanted = set(names)
        return sorted({place.relative_path for at, place in self._index.storage_data.items() if at.fqn in wanted})

    def verify(self, names: Iterable[str]) -> None:
        """Compare size and SHA-256 of every file in which these tensors lie with the manifest. Raises CheckpointError."""
        for file in self.files_of(names):
            self._verify_file(file)

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """One whole tensor, in the stored dtype.

        shape: without padding (dummy heads, rows of the vocabulary), default: as `shapes` has it. What is cut off must be zero.
        Raises CheckpointError.
        """
        full = torch.empty(self._index.state_dict_metadata[name].size, dtype=self.dtypes[name])
        with closed_pickles(), warnings.catch_warnings():
            warnings.simplefilter("ignore")     # that no process group is there
            distributed_checkpoint.load({name: full}, storage_reader=_Reader(self.folder, self._index), no_dist=True)
        return unpadded(full, shape or self.shapes[name], name)

    def _verify_file(self, name: str) -> None:
        if name not in self.manifest.files:
            raise CheckpointError(f"{self.folder}: the index points to {name}, which the manifest does not list")
        if problem := problem_with_file(self.folder, name, self.manifest.files[name]):
            raise CheckpointError(f"{self.folder}: {problem}")


def unpadded(full: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """The first `shape` of a tensor, whose rest must be zero. Raises CheckpointError, with both shapes, where that cannot be."""
    if tuple(full.shape) == tuple(shape):
        return full
    if full.ndim != len(shape) or any(held < wanted for held, wanted in zip(full.shape, shape, strict=True)):
        raise CheckpointError(f"{name}: the checkpoint holds {tuple(full.shape)}, and {tuple(shape)} is wanted")
    kept = full[tuple(slice(0, size) for size in shape)].clone()
    if int(full.count_nonzero()) != int(kept.count_nonzero()):
        raise CheckpointError(f"{name}: of {tuple(full.shape)} all beyond {tuple(shape)} should be padding, and it is not zero")
    return kept
