"""A folder of weights, as `nvlm import` makes it: safetensors under our whole-model names, and weights.json, which says what they
are: sizes in our settings, where they come from and under which licence, and the hash of every file.

    weights/NAME/weights.json   model-00001-of-00008.safetensors …   tokenizer.json where the source had one

Nothing in it depends on a layout: tensors are whole and unpadded, and every rank reads its own part (model/weights.py).
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvlm_train.config.layers import cross_layers
from nvlm_train.config.schema import NOT_OF_WEIGHTS, Connector, CrossAttention, Language, Model, Vision
from nvlm_train.config.typed import build
from nvlm_train.engine.manifest import FileRecord, read_hashed, write_hashed
from nvlm_train.errors import CheckpointError, ConfigError

WEIGHTS, TOKENIZER = "weights.json", "tokenizer.json"
SCHEMA = 1
PARTS = {"vision": Vision, "connector": Connector, "language": Language, "cross_attention": CrossAttention}
# Settings that may differ between weights and a run. Where cross-attention stands is compared by its layers.
_FREE = NOT_OF_WEIGHTS | {"gate_init", "tag_mask", "every"}


@dataclass(frozen=True)
class Sizes:
    """What weights are of, in our settings: the components that are there, None for the others.

    A whole model has all four (NVLM-D no cross_attention) and an architecture; a component alone is one of vision and language.
    """

    architecture: str | None = None
    vision: Vision | None = None
    connector: Connector | None = None
    cross_attention: CrossAttention | None = None
    language: Language | None = None

    @property
    def components(self) -> tuple[str, ...]:
        """Those that are there. Cross-attention's tensors are the language model's, its settings are its own."""
        return tuple(name for name in PARTS if getattr(self, name) is not None)

    def model(self) -> Model:
        """A Model with these parts; the rest as the schema has it."""
        return Model(self.architecture or Model.architecture, **{name: getattr(self, name) for name in self.components})


@dataclass(frozen=True)
class TensorRecord:
    dtype: str                  # as safetensors names it: F32 | BF16 | F16
    shape: tuple[int, ...]
    file: str


@dataclass(frozen=True, kw_only=True)
class WeightsFolder:
    """What a folder of weights says of itself.

    source:     repository and licence (None where the source did not say), its config.json, and what of it was left out
    tokenizer:  SHA-256 of tokenizer.json; None if there is none
    files:      name -> size and hash of every file but weights.json itself
    tensors:    our name -> dtype, shape and file
    """

    path: Path
    sizes: Sizes
    source: Mapping[str, Any]
    files: Mapping[str, FileRecord]
    tensors: Mapping[str, TensorRecord]
    tokenizer: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def tied(self) -> bool:
        """Whether its language model answers with its embedding."""
        return self.sizes.language is not None and self.sizes.language.tie_embeddings

    def write(self) -> None:
        """Write weights.json into the folder, durably, with a hash over itself."""
        sizes = {name: dataclasses.asdict(part) for name in self.sizes.components if (part := getattr(self.sizes, name))}
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
                 if field.name not in ("path", "sizes")}
        facts["files"] = {name: dataclasses.asdict(record) for name, record in self.files.items()}
        facts["tensors"] = {name: dataclasses.asdict(record) for name, record in self.tensors.items()}
        write_hashed(self.path / WEIGHTS,
                     {"schema": SCHEMA, "architecture": self.sizes.architecture, "components": sizes, **facts})

    @classmethod
    def read(cls, path: str | os.PathLike) -> "WeightsFolder":
        """Raises CheckpointError if there is no weights.json, or it is damaged or of another schema."""
        folder = Path(path).expanduser()
        try:
            body = read_hashed(folder / WEIGHTS, SCHEMA)
            parts = {name: build(PARTS[name], settings) for name, settings in body["components"].items()}
            files = {name: FileRecord(int(record["size"]), str(record["sha256"])) for name, record in body["files"].items()}
            tensors = {name: TensorRecord(record["dtype"], tuple(record["shape"]), record["file"])
                       for name, record in body["tensors"].items()}
            outside = {name for name in files if Path(name).name != name}
            if astray := sorted(outside | {record.file for record in tensors.values()} - set(files)):
                raise ValueError(f"it names {astray[0]!r}, which is no file of this folder that it has a hash of")
            return cls(path=folder, sizes=Sizes(body["architecture"], **parts), source=body["source"], files=files,
                       tensors=tensors, tokenizer=body["tokenizer"], versions=body["versions"])
        except FileNotFoundError:
            raise CheckpointError(f"{folder} has no {WEIGHTS}: it is no folder of imported weights") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ConfigError) as problem:
            raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {problem}") from problem

    def problem_with_files(self) -> str | None:
        """The first file that is missing or of another size; None if names and sizes are right."""
        for name, record in self.files.items():
            where = self.path / name
            if not where.is_file():
                return f"{where} ({record.size:,} bytes) is missing: import again"
            if (size := where.stat().st_size) != record.size:
                return f"{where} should have {record.size:,} bytes and has {size:,}: import again"
        return None

    def files_of(self, components: Sequence[str]) -> list[Path]:
        """The files that hold tensors of these components, in order."""
        names = {record.file for name, record in self.tensors.items() if name.partition(".")[0] in components}
        return [self.path / name for name in sorted(names)]


def is_weights_folder(path: str | os.PathLike) -> bool:
    return (Path(path).expanduser() / WEIGHTS).is_file()


def refuse_unimported(path: str | os.PathLike) -> None:
    """Raise CheckpointError with the command to type for a Hugging Face folder, whose tensors have other names."""
    folder = Path(path).expanduser()
    if folder.is_dir() and (folder / "config.json").is_file() and not is_weights_folder(folder):
        raise CheckpointError(
            f"{folder} is a Hugging Face folder, whose tensors have other names and another order. Import it once, and give the "
            f"folder that this makes: nvlm import from={folder} to=weights/{folder.resolve().name}")


def differences(sizes: Sizes, model: Model, components: Sequence[str]) -> list[str]:
    """Where the settings of a model's components differ from those of the weights, both values given.

    A model may untie its output from its embedding: it begins with a copy.
    """
    mine, theirs = meanings(model, components), meanings(sizes.model(), components)
    untied = {"language.tie_embeddings"} if theirs.get("language.tie_embeddings") else set()
    return [f"model.{key}: {theirs[key]} in the weights vs {mine[key]} here"
            for key in mine if mine[key] != theirs[key] and key not in untied]


def meanings(model: Model, components: Sequence[str]) -> dict[str, Any]:
    """All settings of components that give weights their meaning, with nothing left to be derived."""
    return {f"{part}.{name}": value for part in components for name, value in _settings(model, part)}


def _settings(model: Model, part: str) -> Iterator[tuple[str, Any]]:
    m, cross = model.language, model.cross_attention
    derived = {
        ("connector", "hidden"): None if model.connector.layers == 1 else model.connector.hidden or m.ffn,
        ("cross_attention", "layers"): cross_layers(model),
        ("cross_attention", "heads"): cross.heads or m.heads, ("cross_attention", "kv_heads"): cross.kv_heads or m.kv_heads,
    }
    for name, value in dataclasses.asdict(getattr(model, part)).items():
        if name not in _FREE and not (name == "resampler_layers" and not model.connector.resampler_tokens):
            yield name, derived.get((part, name), value)
