"""The originals: transformers' own models at small sizes with random weights, in float32 and, as the reference, in float64 throughout;
and their weights in ours.

Only `originals_checks` imports this, in a process of its own.
"""

import copy
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from nvlm_train.config.schema import Language, Vision
from nvlm_train.huggingface.names import Entry
from nvlm_train.model.init import place, shards


@dataclass(frozen=True)
class Original:
    """A model in float32, and the same in float64."""

    single: nn.Module
    exact: nn.Module


class _ExactRMSNorm(nn.Module):
    def __init__(self, like: nn.Module):
        super().__init__()
        self.weight, self.eps = like.weight, like.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class _ExactAngles(nn.Module):
    def __init__(self, like: nn.Module):
        super().__init__()
        base = like.config.rope_parameters["rope_theta"]
        width = 2 * len(like.inv_freq)
        self.register_buffer("frequencies", base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width))

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = (position_ids[..., None] * self.frequencies).repeat(1, 1, 2)
        return angles.cos(), angles.sin()


def _exactly(model: nn.Module) -> nn.Module:
    """In float64. Its norms and angles go back to float32 whatever the model's dtype, so they are replaced."""
    exact = copy.deepcopy(model).double()
    for parent in list(exact.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, _ExactRMSNorm(child))
            elif type(child).__name__.endswith("RotaryEmbedding"):
                setattr(parent, name, _ExactAngles(child))
    return exact


def _original(model: nn.Module, seed: int) -> Original:
    """Nothing is left at 0 or 1, where a bias or a norm could be forgotten unseen; products keep the size of what they are made of,
    tied embeddings stay small, or the likeliest token would be the one just read."""
    with torch.no_grad():
        for name, param in model.named_parameters():    # by name, so that their order does not matter
            noise = torch.randn(param.shape, generator=torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode())))
            if param.ndim == 1:
                param.copy_(0.2 * noise + (0.0 if name.endswith("bias") else 1.0))
            elif "embed_tokens" in name or "position" in name:
                param.copy_(0.02 * noise)
            else:
                param.copy_(noise / math.sqrt(param.shape[1:].numel()))
    return Original(model.eval(), _exactly(model.eval()))


def language_model(m: Language, seed: int) -> Original:
    """Qwen2ForCausalLM or LlamaForCausalLM of these sizes."""
    config, model = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[m.family]
    sizes = {"vocab_size": m.vocab, "hidden_size": m.hidden, "intermediate_size": m.ffn, "num_hidden_layers": m.layers,
             "num_attention_heads": m.heads, "num_key_value_heads": m.kv_heads, "head_dim": m.head_dim, "rms_norm_eps": m.norm_eps,
             "rope_parameters": {"rope_type": "default", "rope_theta": m.rope_base}, "tie_word_embeddings": m.tie_embeddings}
    return _original(model(config(**sizes)), seed)


def encoder(v: Vision, layers: int, seed: int) -> Original:
    """The family's vision model of these sizes; `layers`: of the published model, perhaps more than ours takes."""
    sizes = {"hidden_size": v.hidden, "num_attention_heads": v.heads, "intermediate_size": v.ffn, "num_hidden_layers": layers,
             "layer_norm_eps": v.norm_eps}
    if v.family == "internvit":
        config = InternVLVisionConfig(
            **sizes, image_size=[v.tile_size] * 2, patch_size=[v.patch] * 2, use_qk_norm=v.qk_norm, attention_bias=v.qkv_bias,
            norm_type={"rms": "rms_norm", "layer": "layer_norm"}[v.norm], use_mean_pooling=True, use_absolute_position_embeddings=True)
        return _original(InternVLVisionModel(config), seed)
    sizes |= {"image_size": v.tile_size, "patch_size": v.patch}
    if v.family == "clip":
        return _original(CLIPVisionModel(CLIPVisionConfig(**sizes)), seed)
    return _original(SiglipVisionModel(SiglipVisionConfig(**sizes, vision_use_head=False)), seed)


_INTERN_NAMES = (   # of transformers' InternVL -> of the published folders
    ("embeddings.cls_token", "embeddings.class_embedding"), ("embeddings.position_embeddings", "embeddings.position_embedding"),
    ("embeddings.patch_embeddings.projection", "embeddings.patch_embedding"), ("encoder.layer.", "encoder.layers."),
    ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("lambda_", "ls"), ("attention.projection_layer", "attn.proj"),
    ("attention.", "attn."))


def as_published(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors under the names of published folders: InternViT's are older than transformers' own class for it."""
    state = model.state_dict()
    if not isinstance(model, InternVLVisionModel):
        return state
    renamed = {}
    for name, tensor in state.items():
        for theirs, published in _INTERN_NAMES:
            name = name.replace(theirs, published)
        renamed[name] = tensor
    for query in [name for name in renamed if "q_proj" in name]:
        parts = [renamed.pop(query.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        renamed[query.replace("q_proj", "qkv")] = torch.cat(parts)
    return renamed


def take_over(stage: nn.Module, component: str, entries: Iterable[Entry], published: Mapping[str, Tensor]) -> set[str]:
    """Fill a component of ours with the original's weights. Returns the names that it had no use for."""
    left, full = set(published), {}
    for entry in entries:
        full[entry.ours] = entry.join([published[name] for name in entry.theirs])
        left -= set(entry.theirs)
    for shard in shards(stage.sharded_state_dict()):
        if shard.key.startswith(component + "."):
            place(shard, full[shard.key])
    return left
