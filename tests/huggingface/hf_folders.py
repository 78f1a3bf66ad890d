"""Small Hugging Face folders with random weights, written from nothing but a model's settings."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

import nvlm_train
from nvlm_train.config.schema import Connector, CrossAttention, Language, Model, Vision
from nvlm_train.huggingface.configs import write_config
from nvlm_train.huggingface.entry import Entry
from nvlm_train.huggingface.language_config import write_language
from nvlm_train.huggingface.names import language_entries, nvlm_entries, vision_entries
from nvlm_train.huggingface.vision_config import write_vision

QWEN2 = Language(family="qwen2", layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab=1100, rope_base=1e6)
LLAMA = replace(QWEN2, family="llama", qkv_bias=False, tie_embeddings=True)
VISION = Vision(layers=2, hidden=24, heads=3, ffn=40, tile_size=16, patch=4)
CLIP = replace(VISION, family="clip", norm="layer", qkv_bias=True, qk_norm=False, layer_scale=False, first_norm=True,
               patch_bias=False, activation="quick_gelu", norm_eps=1e-5, mean=(0.48145466, 0.4578275, 0.40821073),
               std=(0.26862954, 0.26130258, 0.27577711))
SIGLIP = replace(CLIP, family="siglip", first_norm=False, final_norm=True, class_token=False, patch_bias=True,
                 activation="gelu_tanh", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CROSS = CrossAttention(layers=(1,), heads=4, kv_heads=2, ffn=16)
MODELS = {
    "nvlm_d": Model("nvlm_d", VISION, Connector(), language=QWEN2),
    "nvlm_x": Model("nvlm_x", VISION, Connector(layers=1), CROSS, QWEN2),
    "nvlm_h": Model("nvlm_h", VISION, Connector(), CROSS, QWEN2),
}
TOKENIZER = (Path(nvlm_train.__file__).parent / "assets" / "tiny_tokenizer.json").read_bytes()     # 1,024 tokens, one `<image>`
README = "---\nlicense: {}\nlanguage:\n- en\n---\n# A model\n"


def random_ours(entries: Iterable[Entry], dtype=torch.bfloat16) -> dict[str, torch.Tensor]:
    """A tensor under each of our names."""
    generator = torch.Generator().manual_seed(0)
    return {entry.ours: torch.randn(entry.shape, generator=generator).to(dtype) for entry in entries}


def theirs_of(entries: Iterable[Entry], ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same in a Hugging Face folder."""
    return {name: part.contiguous() for entry in entries
            for name, part in zip(entry.theirs, entry.split(ours[entry.ours]), strict=True)}


def write_folder(path: Path, config: dict, tensors: dict, shards: int = 1, **files: bytes | str) -> Path:
    """config.json, safetensors in one file or in several with an index, and further files (`_` in names stands for a dot)."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
    else:
        parts = {f"model-{n + 1:05}-of-{shards:05}.safetensors": names[n::shards] for n in range(shards)}
        for file, held in parts.items():
            save_file({name: tensors[name] for name in held}, path / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, contents in files.items():
        (path / name.replace("_", ".")).write_bytes(contents.encode() if isinstance(contents, str) else contents)
    return path


def language_folder(path: Path, language: Language = QWEN2, shards: int = 1, dtype=torch.bfloat16, **files):
    """(the folder, our tensors)"""
    entries = list(language_entries(language))
    ours = random_ours(entries, dtype)
    return write_folder(path, write_language(language), theirs_of(entries, ours), shards, **files), ours


def vision_folder(path: Path, vision: Vision = VISION, dummy_heads: int = 0, prefix: str = "", **files):
    """(the folder, our tensors)"""
    entries = list(vision_entries(vision, prefix, dummy_heads))
    ours = random_ours(entries, torch.float16)
    return write_folder(path, write_vision(vision), theirs_of(entries, ours), **files), ours


def whole_folder(path: Path, model: Model, dummy_heads: int = 7, shards: int = 2, dtype=torch.bfloat16, **files):
    """(the folder, our tensors)"""
    entries = list(nvlm_entries(model, dummy_heads))
    ours = random_ours(entries, dtype)
    return write_folder(path, write_config(model), theirs_of(entries, ours), shards, **files), ours
