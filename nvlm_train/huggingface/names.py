"""Which tensors of a Hugging Face folder hold which of ours: the one table that import and export go by.

Language models: Qwen2ForCausalLM and LlamaForCausalLM. Encoders: InternVisionModel (both styles), CLIPVisionModel and
SiglipVisionModel. Whole models: the layout of the published NVLM-D-72B, and for the gated cross-attention of NVLM-X and NVLM-H,
which nobody has published, names after its pattern (docs/export.md). Entries come layer by layer.
"""

from collections.abc import Iterator

from nvlm_train.config.layers import cross_layers
from nvlm_train.config.schema import CrossAttention, Language, Model, Vision
from nvlm_train.errors import ConfigError
from nvlm_train.geometry import TileGeometry
from nvlm_train.huggingface.entry import Entry, fused_heads, grouped, padded, same

__all__ = ["Entry", "connector_entries", "cross_entries", "language_entries", "nvlm_entries", "vision_entries"]


def language_entries(language: Language, prefix: str = "") -> Iterator[Entry]:
    """Qwen2 or Llama. prefix: of their names. With tied embeddings there is no output layer, on either side."""
    m, width = language, language.hidden
    yield same("language.embedding.weight", f"{prefix}model.embed_tokens.weight", m.vocab, width)
    for number in range(m.layers):
        ours, theirs = f"language.decoder.layers.{number}.", f"{prefix}model.layers.{number}."
        yield same(f"{ours}self_attention.linear_qkv.layer_norm_weight", f"{theirs}input_layernorm.weight", width)
        yield from _grouped_query(ours, theirs, m)
        yield same(f"{ours}self_attention.linear_proj.weight", f"{theirs}self_attn.o_proj.weight", width, m.heads * m.head_dim)
        yield same(f"{ours}mlp.linear_fc1.layer_norm_weight", f"{theirs}post_attention_layernorm.weight", width)
        yield grouped(f"{ours}mlp.linear_fc1.weight", [f"{theirs}mlp.{name}_proj.weight" for name in ("gate", "up")],
                      1, (m.ffn, m.ffn), width)
        yield same(f"{ours}mlp.linear_fc2.weight", f"{theirs}mlp.down_proj.weight", width, m.ffn)
    yield same("language.decoder.final_layernorm.weight", f"{prefix}model.norm.weight", width)
    if not m.tie_embeddings:
        yield same("language.output_layer.weight", f"{prefix}lm_head.weight", m.vocab, width)


def _grouped_query(ours: str, theirs: str, m: Language) -> Iterator[Entry]:
    """Megatron keeps, group by group, the queries of the group, its key and its value."""
    rows = (m.heads // m.kv_heads * m.head_dim, m.head_dim, m.head_dim)
    for kind, columns in (("weight", (m.hidden,)), *([("bias", ())] if m.qkv_bias else [])):
        yield grouped(f"{ours}self_attention.linear_qkv.{kind}", [f"{theirs}self_attn.{part}_proj.{kind}" for part in "qkv"],
                      m.kv_heads, rows, *columns)


def vision_entries(vision: Vision, prefix: str = "", dummy_heads: int = 0) -> Iterator[Entry]:
    """An encoder by its family. dummy_heads: empty ones behind the real heads in their file (InternViT only; a released
    NVLM-D-72B has 7). Raises ConfigError for an encoder that its family has no names for."""
    if problems := list(_strange_to_family(vision, dummy_heads)):
        raise ConfigError(problems)
    return _intern_entries(vision, prefix, dummy_heads) if vision.family == "internvit" else _clip_entries(vision, prefix)


_SETTINGS = {   # what the names of a family imply
    "internvit": {"first_norm": False, "final_norm": False, "class_token": True, "patch_bias": True},
    "clip": {"norm": "layer", "qkv_bias": True, "qk_norm": False, "layer_scale": False, "first_norm": True,
             "class_token": True, "patch_bias": False},
    "siglip": {"norm": "layer", "qkv_bias": True, "qk_norm": False, "layer_scale": False, "first_norm": False,
               "class_token": False, "patch_bias": True},
}


def _strange_to_family(vision: Vision, dummy_heads: int) -> Iterator[str]:
    for name, wanted in _SETTINGS[vision.family].items():
        if (value := getattr(vision, name)) != wanted:
            yield f"model.vision.{name}={value}: published encoders of family {vision.family} have {wanted}, and no other names"
    if dummy_heads and vision.family != "internvit":
        yield f"dummy heads ({dummy_heads}) are the InternViT family's, not {vision.family}'s"


def _norm(ours: str, theirs: str, kind: str, width: int) -> Iterator[Entry]:
    """kind: rms (a weight) | layer (a weight and a bias)."""
    for part in ("weight",) if kind == "rms" else ("weight", "bias"):
        yield same(f"{ours}.{part}", f"{theirs}.{part}", width)


def _linear(ours: str, theirs: str, high: int, wide: int) -> Iterator[Entry]:
    yield same(f"{ours}.weight", f"{theirs}.weight", high, wide)
    yield same(f"{ours}.bias", f"{theirs}.bias", high)


def _positions(v: Vision) -> int:
    return TileGeometry(v.tile_size, v.patch).patches + int(v.class_token)


def _intern_entries(v: Vision, prefix: str, dummy_heads: int) -> Iterator[Entry]:
    width = v.hidden
    theirs = f"{prefix}embeddings."
    yield same("vision.class_token", f"{theirs}class_embedding", 1, 1, width)
    yield same("vision.patch_weight", f"{theirs}patch_embedding.weight", width, 3, v.patch, v.patch)
    yield same("vision.patch_bias", f"{theirs}patch_embedding.bias", width)
    yield same("vision.position", f"{theirs}position_embedding", 1, _positions(v), width)
    for number in range(v.layers):
        ours, theirs = f"vision.layers.{number}.", f"{prefix}encoder.layers.{number}."
        yield from _norm(f"{ours}norm1", f"{theirs}norm1", v.norm, width)
        yield from _intern_attention(f"{ours}attention.", f"{theirs}attn.", v, dummy_heads)
        yield from _norm(f"{ours}norm2", f"{theirs}norm2", v.norm, width)
        yield from _linear(f"{ours}linear_fc1", f"{theirs}mlp.fc1", v.ffn, width)
        yield from _linear(f"{ours}linear_fc2", f"{theirs}mlp.fc2", width, v.ffn)
        if v.layer_scale:
            yield from (same(f"{ours}{name}", f"{theirs}{name}", width) for name in ("ls1", "ls2"))


def _intern_attention(ours: str, theirs: str, v: Vision, dummy_heads: int) -> Iterator[Entry]:
    width, head_dim = v.hidden, v.hidden // v.heads
    extra = dummy_heads * head_dim
    yield fused_heads(f"{ours}linear_qkv.weight", f"{theirs}qkv.weight", v.heads, head_dim, dummy_heads, width)
    if v.qkv_bias:
        yield fused_heads(f"{ours}linear_qkv.bias", f"{theirs}qkv.bias", v.heads, head_dim, dummy_heads)
    if v.qk_norm:   # a dummy head's queries and keys are zeros, so the norm's weight there says nothing, whatever it is
        yield from (padded(f"{ours}{name}.weight", f"{theirs}{name}.weight", (width,), 0, extra, checked=False)
                    for name in ("q_norm", "k_norm"))
    yield padded(f"{ours}linear_proj.weight", f"{theirs}proj.weight", (width, width), 1, extra)
    yield same(f"{ours}linear_proj.bias", f"{theirs}proj.bias", width)


def _clip_entries(v: Vision, prefix: str) -> Iterator[Entry]:
    """CLIP and SigLIP: the same names but for the class token and the first norm."""
    width, positions = v.hidden, _positions(v)
    theirs = f"{prefix}embeddings."
    if v.class_token:
        yield same("vision.class_token", f"{theirs}class_embedding", 1, 1, width, their_shape=(width,))
    yield same("vision.patch_weight", f"{theirs}patch_embedding.weight", width, 3, v.patch, v.patch)
    if v.patch_bias:
        yield same("vision.patch_bias", f"{theirs}patch_embedding.bias", width)
    yield same("vision.position", f"{theirs}position_embedding.weight", 1, positions, width, their_shape=(positions, width))
    if v.first_norm:
        yield from _norm("vision.first_norm", f"{prefix}pre_layrnorm", v.norm, width)   # their spelling
    for number in range(v.layers):
        ours, theirs = f"vision.layers.{number}.", f"{prefix}encoder.layers.{number}."
        yield from _norm(f"{ours}norm1", f"{theirs}layer_norm1", v.norm, width)
        rows = (width // v.heads,) * 3
        for kind, columns in (("weight", (width,)), ("bias", ())):
            yield grouped(f"{ours}attention.linear_qkv.{kind}", [f"{theirs}self_attn.{part}_proj.{kind}" for part in "qkv"],
                          v.heads, rows, *columns)
        yield from _linear(f"{ours}attention.linear_proj", f"{theirs}self_attn.out_proj", width, width)
        yield from _norm(f"{ours}norm2", f"{theirs}layer_norm2", v.norm, width)
        yield from _linear(f"{ours}linear_fc1", f"{theirs}mlp.fc1", v.ffn, width)
        yield from _linear(f"{ours}linear_fc2", f"{theirs}mlp.fc2", width, v.ffn)
    if v.final_norm:
        yield from _norm("vision.final_norm", f"{prefix}post_layernorm", v.norm, width)


def connector_entries(model: Model) -> Iterator[Entry]:
    """`mlp1`: LayerNorm, and one (NVLM-X) or two linears without bias, numbered as in the released model's nn.Sequential.

    Raises ConfigError for a perceiver resampler, which no published layout has.
    """
    settings, language = model.connector, model.language
    if settings.resampler_tokens:
        raise ConfigError(f"model.connector.resampler_tokens={settings.resampler_tokens}: no Hugging Face layout has names for a "
                          "resampler")
    width = model.vision.hidden * settings.shuffle**2
    yield from _norm("connector.norm", "mlp1.0", "layer", width)
    if settings.layers == 1:
        yield same("connector.linear_fc1.weight", "mlp1.1.weight", language.hidden, width)
        return
    inner = settings.hidden or language.ffn
    yield same("connector.linear_fc1.weight", "mlp1.1.weight", inner, width)
    yield same("connector.linear_fc2.weight", "mlp1.3.weight", language.hidden, inner)


def cross_entries(model: Model, prefix: str = "language_model.") -> Iterator[Entry]:
    """Gated cross-attention of NVLM-X and NVLM-H, layer by layer; nothing for NVLM-D."""
    cross, width = model.cross_attention, model.language.hidden
    for number in cross_layers(model):
        ours, theirs = f"language.decoder.layers.{number}.", f"{prefix}model.layers.{number}."
        yield same(f"{ours}pre_cross_attn_layernorm.weight", f"{theirs}cross_attn_layernorm.weight", width)
        yield from _cross_attention(f"{ours}cross_attention.", f"{theirs}cross_attn.", cross, model.language)
        if cross.ffn:
            yield from _cross_mlp(f"{ours}cross_attn_bda.", theirs, cross.ffn, width)


def _cross_attention(ours: str, theirs: str, cross: CrossAttention, m: Language) -> Iterator[Entry]:
    queries, kv_heads = (cross.heads or m.heads) * m.head_dim, cross.kv_heads or m.kv_heads
    yield same(f"{ours}linear_q.weight", f"{theirs}q_proj.weight", queries, m.hidden)
    yield grouped(f"{ours}linear_kv.weight", [f"{theirs}k_proj.weight", f"{theirs}v_proj.weight"], kv_heads,
                  (m.head_dim, m.head_dim), m.hidden)
    yield same(f"{ours}linear_proj.weight", f"{theirs}o_proj.weight", m.hidden, queries)
    if cross.qk_norm:
        yield from (same(f"{ours}{name}.weight", f"{theirs}{name}.weight", m.head_dim) for name in ("q_norm", "k_norm"))
    yield same(f"{ours}gate", f"{theirs}gate", 1)


def _cross_mlp(ours: str, theirs: str, ffn: int, width: int) -> Iterator[Entry]:
    yield same(f"{ours}norm.weight", f"{theirs}cross_mlp_layernorm.weight", width)
    yield same(f"{ours}linear_gate.weight", f"{theirs}cross_mlp.gate_proj.weight", ffn, width)
    yield same(f"{ours}linear_up.weight", f"{theirs}cross_mlp.up_proj.weight", ffn, width)
    yield same(f"{ours}linear_fc2.weight", f"{theirs}cross_mlp.down_proj.weight", width, ffn)
    yield same(f"{ours}gate", f"{theirs}cross_mlp.gate", 1)


def nvlm_entries(model: Model, dummy_heads: int = 0) -> Iterator[Entry]:
    """A whole model in the released layout. dummy_heads: as for `vision_entries`."""
    yield from vision_entries(model.vision, "vision_model.", dummy_heads)
    yield from connector_entries(model)
    yield from language_entries(model.language, "language_model.")
    yield from cross_entries(model)
