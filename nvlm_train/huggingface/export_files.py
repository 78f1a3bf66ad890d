"""The small files of an exported folder: configuration, tokenizer, and for a whole model the Python files that run it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch

from nvlm_train.data.templates import Segment, Special, Template
from nvlm_train.data.tokenizer import Tokenizer
from nvlm_train.huggingface.configs import WHOLE, write_config
from nvlm_train.huggingface.export_source import Source
from nvlm_train.huggingface.language_config import write_language
from nvlm_train.huggingface.vision_config import write_preprocessor, write_vision

CODE = ("configuration_nvlm.py", "modeling_nvlm.py", "processing_nvlm.py", "vision_nvlm.py")
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True)
class Folder:
    """An export about to be written.

    part: whole | language | vision. tokenizer: None for an encoder alone. dummy_heads: behind the encoder's own. dtype: of the
    tensors. join: tags are tokenised together with what is around them.
    """

    source: Source
    part: str
    tokenizer: Tokenizer | None
    dummy_heads: int
    dtype: torch.dtype
    join: bool


def files_of(folder: Folder) -> dict[str, bytes]:
    """Name -> content of everything but the tensors and the model card. Raises ConfigError for what no layout has."""
    model = folder.source.run.model
    files = {"config.json": as_json(_config(folder))}
    if folder.part != "language":
        files["preprocessor_config.json"] = as_json(write_preprocessor(model.vision))
    if folder.tokenizer is not None:
        ids = token_ids(folder.tokenizer)
        files["generation_config.json"] = as_json({**ids, "do_sample": False})
        files["tokenizer.json"] = folder.tokenizer.file
        files["tokenizer_config.json"] = as_json(tokenizer_config(folder))
    if folder.part == "whole":
        assets = resources.files("nvlm_train.huggingface") / "assets"
        files |= {name: (assets / name).read_bytes() for name in CODE}
    return files


def as_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids as config.json and generation_config.json name them; `bos_token_id` only where a template begins with a token."""
    begin = [part.token for part in tokenizer.template.begin if isinstance(part, Special)]
    return {**({"bos_token_id": tokenizer.special(begin[0])} if begin else {}),
            "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}


def _config(folder: Folder) -> dict[str, Any]:
    model, dtype = folder.source.run.model, {"torch_dtype": _DTYPES[folder.dtype]}
    encoder = {**dtype, **({"vision_use_head": False} if model.vision.family == "siglip" else {})}
    if folder.part == "vision":
        return {**write_vision(model.vision), **encoder}
    ids = token_ids(folder.tokenizer)
    if folder.part == "language":
        return {**write_language(model.language, **_positions(folder)), **ids, **dtype}
    config = write_config(model, **_positions(folder))
    config["llm_config"] |= {**ids, **dtype}
    config["vision_config"] |= encoder
    if model.vision.family == "internvit":
        config["vision_config"]["num_dummy_heads"] = folder.dummy_heads
    return {**config, **_tiling(folder), **_prompt(folder), **_code(config["model_type"]), **dtype}


def _positions(folder: Folder) -> dict[str, int]:
    """The longest text that imported weights were said to read; nothing of a checkpoint, which does not know."""
    published = folder.source.published
    found = (published.get("llm_config") or published).get("max_position_embeddings")
    return {"max_positions": found} if isinstance(found, int) else {}


def _code(kind: str) -> dict[str, Any]:
    """Where transformers finds the classes, with trust_remote_code=True."""
    assert kind in WHOLE
    return {"auto_map": {"AutoConfig": f"configuration_nvlm.{kind}_Config", "AutoModel": f"modeling_nvlm.{kind}",
                         "AutoModelForCausalLM": f"modeling_nvlm.{kind}"}}


def _tiling(folder: Folder) -> dict[str, Any]:
    data = folder.source.run.data
    return {"dynamic_image_size": data.max_tiles > 1, "use_thumbnail": data.thumbnail, "min_dynamic_patch": 1,
            "max_dynamic_patch": data.max_tiles, "pad2square": False}


def _prompt(folder: Folder) -> dict[str, Any]:
    """How prompts are written, as this model was trained: what the public layout has no place for."""
    run, tokenizer = folder.source.run, folder.tokenizer
    template, tags = tokenizer.template, run.model.tags
    roles = run.data.format == "chat"
    return {
        "template": template.name, "image_token_id": tokenizer.image_id,
        "pixels": {"mean": list(run.model.vision.mean), "std": list(run.model.vision.std)},
        "prompt": {
            "roles": roles, "system": run.data.system_prompt if roles else None, "begin": _plain(template.begin),
            "open": _plain(template.open), "end": template.end, "after": template.after,
            "image_token": image_token(tokenizer), "tags": tags.kind, "global_tag": f"<{tags.global_name}>",
            **(folder.source.published.get("prompt") or {}),    # of a model that was exported, and imported again
            "join_tags": folder.join,
        },
    }


def _plain(segments: tuple[Segment, ...]) -> list[list[str]]:
    return [["special", part.token] if isinstance(part, Special) else ["text", part.text] for part in segments]


def image_token(tokenizer: Tokenizer) -> str:
    """The special token that stands for a visual token."""
    return tokenizer.decode([tokenizer.image_id], skip_special=False)


def tokenizer_config(folder: Folder) -> dict[str, Any]:
    """tokenizer_config.json: special tokens, and the chat template if the model was trained on turns."""
    run, tokenizer = folder.source.run, folder.tokenizer
    names = {key.removesuffix("_id"): tokenizer.decode([number], skip_special=False)
             for key, number in token_ids(tokenizer).items()}
    chat = {"chat_template": chat_template(tokenizer.template, run.data.system_prompt)} if run.data.format == "chat" else {}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **names, "additional_special_tokens": [image_token(tokenizer)],
            "clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"], **chat}


def chat_template(template: Template, system: str | None) -> str:
    """The template as transformers and vLLM take it (Jinja): turns as `data.chat` writes them, one `system` turn put before those
    of a chat that has none."""
    def literal(parts: tuple[Segment, ...], role: str) -> str:
        text = "".join(part.token if isinstance(part, Special) else part.text for part in parts)
        pieces = [json.dumps(piece, ensure_ascii=False) for piece in text.split("{role}")]
        return f" + {role} + ".join(pieces)

    ending = json.dumps(template.end + template.after, ensure_ascii=False)
    lines = []
    if template.begin:
        lines.append("{{ " + literal(template.begin, "''") + " }}")
    if system is not None:
        lines.append("{% if messages | selectattr('role', 'equalto', 'system') | list | length == 0 %}{{ "
                     + literal(template.open, "'system'") + " + " + json.dumps(system, ensure_ascii=False) + " + " + ending
                     + " }}{% endif %}")
    lines.append("{% for message in messages %}{{ " + literal(template.open, "message['role']") + " + message['content'] + "
                 + ending + " }}{% endfor %}")
    lines.append("{% if add_generation_prompt %}{{ " + literal(template.open, "'assistant'") + " }}{% endif %}")
    return "".join(lines)
