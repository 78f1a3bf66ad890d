"""Where an export takes its weights from: a checkpoint of a run, or a folder of imported weights. One tensor at a time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from nvlm_train.config.schema import Data, Run
from nvlm_train.config.typed import build
from nvlm_train.engine.folders import run_dir_of
from nvlm_train.engine.manifest import Manifest, problem_with_file
from nvlm_train.engine.stored import StoredWeights, unpadded
from nvlm_train.engine.weights_folder import TOKENIZER, WeightsFolder, is_weights_folder, refuse_unimported
from nvlm_train.errors import CheckpointError
from nvlm_train.huggingface.shard_format import DTYPES


class Tensors(Protocol):
    """Whole tensors under our whole-model names, without padding."""

    dtypes: Mapping[str, torch.dtype]

    def verify(self, names: Iterable[str]) -> None:
        """Raises CheckpointError unless the files in which these tensors lie are as they were written."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Raises CheckpointError for another shape."""


@dataclass(frozen=True)
class Source:
    """What is exported. run: the settings of the stage that made it. components: those that it holds. manifest: of a checkpoint.
    weights: what imported weights say of themselves, None for a checkpoint."""

    folder: Path
    run: Run
    components: frozenset[str]
    tensors: Tensors
    manifest: Manifest | None = None
    weights: WeightsFolder | None = None

    @property
    def run_dir(self) -> Path | None:
        """The run directory that a checkpoint lies in; None for one that was moved out, and for imported weights."""
        return run_dir_of(self.folder) if self.manifest else None

    @property
    def tokenizer_sha256(self) -> str | None:
        """Of the tokenizer that the model was trained with; None if nobody says."""
        return self.manifest.fingerprint["tokenizer"] if self.manifest else self.weights.tokenizer

    @property
    def published(self) -> Mapping[str, Any]:
        """The config.json that weights were imported with; {} for a checkpoint."""
        return self.weights.source.get("config") or {} if self.weights else {}


def open_source(path: str) -> Source:
    """A run, a stage, a step, or a folder of imported weights. Raises CheckpointError."""
    if is_weights_folder(path):
        return _imported(WeightsFolder.read(path))
    refuse_unimported(path)
    stored = StoredWeights(path)
    run = build(Run, stored.manifest.config)
    return Source(stored.folder, run, frozenset({"vision", "connector", "language"}), stored, stored.manifest)


def _imported(weights: WeightsFolder) -> Source:
    """Settings that weights do not have are the schema's, or the published config.json's."""
    if problem := weights.problem_with_files():
        raise CheckpointError(problem)
    config = weights.source.get("config") or {}
    data = Data(max_tiles=int(config.get("max_dynamic_patch", Data.max_tiles)), thumbnail=bool(config.get("use_thumbnail", True)))
    model = replace(weights.sizes.model(), tokenizer=str(weights.path / TOKENIZER))
    components = frozenset(weights.sizes.components) - {"cross_attention"}
    return Source(weights.path, Run("imported weights", "sft", model, data=data), components, _Files(weights), weights=weights)


class _Files:
    """The safetensors of a folder of weights, memory-mapped."""

    def __init__(self, weights: WeightsFolder):
        self._weights, self._open = weights, {}
        self.dtypes = {name: DTYPES[record.dtype] for name, record in weights.tensors.items()}

    def verify(self, names: Iterable[str]) -> None:
        weights = self._weights
        for file in sorted({weights.tensors[name].file for name in names}):
            if problem := problem_with_file(weights.path, file, weights.files[file]):
                raise CheckpointError(f"{weights.path}: {problem}")

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        file = self._weights.tensors[name].file
        if file not in self._open:
            self._open = {file: safe_open(self._weights.path / file, "pt")}
        return unpadded(self._open[file].get_tensor(name), shape, name)
