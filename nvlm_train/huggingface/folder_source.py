"""A Hugging Face folder as the source of an import: config.json, safetensors in one file or in shards with an index.

Headers are read and checked against the files' sizes before a single tensor is; tensors are memory-mapped. Pickles are never
opened.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nvlm_train.engine.weights_folder import WEIGHTS
from nvlm_train.errors import CheckpointError
from nvlm_train.huggingface.shard_format import DTYPES, INDEX

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LARGEST_HEADER = 100_000_000   # bytes; safetensors' own limit
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class FolderSource:
    """See `import_source.Source`. Raises CheckpointError when the folder is not whole."""

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        self.config = self._read_config()
        self.preprocessor = self._json("preprocessor_config.json") if (path / "preprocessor_config.json").is_file() else None
        self.tokenizer = (path / "tokenizer.json").read_bytes() if (path / "tokenizer.json").is_file() else None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self._read_headers()
        self.repository, self.licence = self._origin()

    def tensor(self, name: str) -> Tensor:
        """A tensor that is mapped from its file, not read into memory."""
        file = self._files[name]
        try:
            if file not in self._open:
                self._open[file] = safe_open(file, "pt")
            return self._open[file].get_tensor(name)
        except (SafetensorError, OSError) as problem:
            raise CheckpointError(f"{file}: {name} cannot be read: {problem}") from problem

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise CheckpointError(f"{self.path / name} cannot be read: {problem}") from problem
        if not isinstance(found, dict):
            raise CheckpointError(f"{self.path / name} holds no table of settings")
        return found

    def _read_config(self) -> dict[str, Any]:
        if (self.path / WEIGHTS).is_file():
            raise CheckpointError(f"{self.path} was imported already: give it as model.language.weights, model.vision.weights or "
                                  "init")
        if not (self.path / "config.json").is_file():
            raise CheckpointError(f"{self.path} has no config.json: an import reads a Hugging Face folder, as it was published")
        return self._json("config.json")

    def _read_headers(self) -> None:
        """Shapes, dtypes and files of all tensors, from the files' own headers; an index only says which files there are."""
        indexed = self._index()
        files = sorted({self.path / file for file in indexed.values()}) if indexed else self._lone_files()
        for file in files:
            for name, entry in _header(file).items():
                if name in self._files:
                    raise CheckpointError(f"{name} is both in {self._files[name]} and in {file}: which one counts? Remove the "
                                          "files that do not belong to the model")
                self.shapes[name], self.dtypes[name], self._files[name] = tuple(entry["shape"]), _dtype(file, name, entry), file
        wrong = [name for name, file in indexed.items() if self._files.get(name) != self.path / file]
        if wrong:
            raise CheckpointError(f"{self.path / INDEX} says that {wrong[0]} is in {indexed[wrong[0]]}, and it is not "
                                  f"({len(wrong)} such tensors): the files are not of one download")

    def _index(self) -> Mapping[str, str]:
        """Name of a tensor -> name of its file; empty where there is no index. Raises CheckpointError: files are not there."""
        if not (self.path / INDEX).is_file():
            return {}
        indexed = self._json(INDEX).get("weight_map")
        if not isinstance(indexed, dict) or not indexed or not all(isinstance(file, str) for file in indexed.values()):
            raise CheckpointError(f"{self.path / INDEX} has no weight_map, which says where each tensor is")
        names = sorted(set(indexed.values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise CheckpointError(f"{self.path / INDEX} names {outside[0]}, which is not a file of this folder")
        if absent := [name for name in names if not (self.path / name).is_file()]:
            raise CheckpointError(f"{self.path / INDEX} names {len(names)} files, and {len(absent)} of them are not there: "
                                  f"{', '.join(absent[:8])}. Download them too")
        return indexed

    def _lone_files(self) -> list[Path]:
        if (self.path / "model.safetensors").is_file():
            return [self.path / "model.safetensors"]
        if files := sorted(self.path.glob("*.safetensors")):
            return files
        pickles = sorted(file.name for pattern in _PICKLES for file in self.path.glob(pattern))
        if not pickles:
            raise CheckpointError(f"{self.path} holds no safetensors files")
        raise CheckpointError(
            f"{self.path} holds its weights as pickles only ({', '.join(pickles[:3])}), which may run any code when they are "
            "opened; they are not. If you trust them, convert them once: "
            "python -c \"from transformers import AutoModelForCausalLM as M; "
            f"M.from_pretrained('{self.path}', dtype='auto').save_pretrained('{self.path}-safe')\" (an encoder: AutoModel), and "
            "import that folder")

    def _origin(self) -> tuple[str | None, str | None]:
        """(repository, licence) as far as the folder tells: config.json remembers a name, README.md begins with the licence."""
        told = self.config.get("_name_or_path")
        repository = told if isinstance(told, str) and _REPOSITORY.fullmatch(told) else None
        readme = self.path / "README.md"
        front = _front_matter(readme.read_text(encoding="utf-8", errors="replace")) if readme.is_file() else {}
        licence = front.get("license")
        if licence == "other":      # its name stands beside it
            licence = front.get("license_name") or licence
        return repository, licence if isinstance(licence, str) else None


def _header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file: name -> dtype, shape and bytes. Raises CheckpointError for a file that is not whole."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= min(_LARGEST_HEADER, size - 8):
            raise CheckpointError(f"{file} ({size:,} bytes) is no whole safetensors file: its header should be {length:,} bytes "
                                  "long. Download it again")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            bad = next((name for name, entry in header.items() if not _sound(entry)), None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0) if bad is None else 0
        except (ValueError, AttributeError, TypeError, KeyError) as problem:
            raise CheckpointError(f"{file} is no safetensors file: {problem}") from problem
    if bad is not None:
        raise CheckpointError(f"{file}: the header does not describe {bad} soundly; the file is damaged")
    if 8 + length + end != size:
        raise CheckpointError(f"{file} should have {8 + length + end:,} bytes by its header and has {size:,}: download it again")
    return header


def _sound(entry: Mapping[str, Any]) -> bool:
    start, end = entry["data_offsets"]
    width = DTYPES[entry["dtype"]].itemsize if entry["dtype"] in DTYPES else None
    return 0 <= start <= end and (width is None or end - start == width * math.prod(entry["shape"]))


def _dtype(file: Path, name: str, entry: Mapping[str, Any]) -> torch.dtype:
    """Of a tensor; what is not a number that can be trained on (a position buffer) keeps its kind and is looked at later."""
    if entry["dtype"] in DTYPES:
        return DTYPES[entry["dtype"]]
    if entry["dtype"] in ("I64", "I32", "BOOL"):
        return torch.int64
    raise CheckpointError(f"{file}: {name} is stored as {entry['dtype']}; {', '.join(DTYPES)} are read. A quantised model cannot "
                          "be trained on: import the one that it was made from")


def _front_matter(text: str) -> dict[str, Any]:
    """The YAML between the two lines of dashes at a README's head; {} where there is none that can be read."""
    if not text.startswith("---"):
        return {}
    head, _, _ = text[3:].partition("\n---")
    try:
        found = yaml.safe_load(head)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
