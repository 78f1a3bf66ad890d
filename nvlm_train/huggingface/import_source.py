"""What an import reads from: a model as its publisher tells it, one tensor at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nvlm_train.errors import CheckpointError, ConfigError
from nvlm_train.huggingface.folder_source import FolderSource
from nvlm_train.huggingface.gguf import is_gguf, open_gguf


class Source(Protocol):
    """A published model.

    name:               for messages
    config:             in the terms of config.json; preprocessor: of preprocessor_config.json, None if there is none
    shapes, dtypes:     of every tensor, by its published name
    tokenizer:          contents of a tokenizer.json, None if there is none
    repository, licence: where the model was published and how, None where nobody says
    """

    name: str
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any] | None
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    tokenizer: bytes | None
    repository: str | None
    licence: str | None

    def tensor(self, name: str) -> Tensor:
        """One whole tensor, on the CPU. Raises CheckpointError if it cannot be read."""


def open_source(where: str) -> Source:
    """The source that a user names: a Hugging Face folder, a GGUF file, or package:NAME of a Python package that brings one.

    Raises CheckpointError: it cannot be imported from; ConfigError: there is nothing of that name.
    """
    if is_gguf(where):
        return open_gguf(where)
    path = Path(where).expanduser()
    if path.is_dir():
        return FolderSource(path)
    if path.exists():
        raise CheckpointError(f"from={where} is a file; give the folder that holds it, with its config.json")
    way = f". If it is a repository, download it first: hf download {where} --local-dir {path.name}"
    raise ConfigError(f"from={where}: there is no such folder{way if where.count('/') == 1 else ''}")
