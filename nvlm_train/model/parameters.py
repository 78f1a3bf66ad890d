"""Every parameter that a rank holds, by name and shape: what the modules build, counted without building them.

Names are those of the whole model (layers counted over all stages), so patterns of `train.trainable` mean the same here as in the
engine. Plain arithmetic; `planning.skeleton` holds it to the real modules, name by name.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from nvlm_train.config.layers import cross_layers
from nvlm_train.config.schema import Connector, CrossAttention, Language, Layout, Model, Run, Vision
from nvlm_train.config.split import encoder_tensor, padded_size, stage_layers
from nvlm_train.geometry import TileGeometry
from nvlm_train.model.freeze import is_cross_attention, matches


@dataclass(frozen=True)
class Parameter:
    """One tensor of a rank. shape: what the rank allocates; padding: how many of its elements are dummy heads' or spare rows' and stay zero;
    whole: every tensor-parallel rank has all of it."""

    name: str
    shape: tuple[int, ...]
    padding: int = 0
    whole: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def component(self) -> str:
        """vision | connector | language | cross_attention, as `model.accounting` counts them."""
        return "cross_attention" if is_cross_attention(self.name) else self.name.split(".", 1)[0]


def whole_parameters(model: Model) -> tuple[Parameter, ...]:
    """All parameters of a model that one rank holds alone."""
    return _rank_parameters(model, Layout(), 0, 0)[0]


def rank_parameters(run: Run, pipeline_rank: int, tensor_rank: int = 0) -> tuple[tuple[Parameter, ...], ...]:
    """The parameters of each (virtual) stage of a rank, in the order in which the modules name them."""
    return _rank_parameters(run.model, run.layout, pipeline_rank, tensor_rank)


@lru_cache(maxsize=256)
def _rank_parameters(model: Model, layout: Layout, pipeline_rank: int, tensor_rank: int) -> tuple[tuple[Parameter, ...], ...]:
    chunks = stage_layers(model.language.layers, layout, pipeline_rank)
    found = []
    for number, layers in enumerate(chunks):
        first = pipeline_rank == 0 and number == 0
        last = pipeline_rank == layout.pipeline - 1 and number == len(chunks) - 1
        found.append((*_before(model, layout, tensor_rank, first), *_layers(model, layout.tensor, layers),
                      *_after(model.language, layout.tensor, tensor_rank, first, last)))
    return tuple(found)


@lru_cache(maxsize=64)
def trained_names(model: Model, patterns: tuple[str, ...]) -> frozenset[str]:
    """Names over the whole model that a pattern of `train.trainable` matches."""
    return frozenset(parameter.name for parameter in whole_parameters(model)
                     if any(matches(pattern, parameter.name) for pattern in patterns))


def _under(prefix: str, parameters: Iterable[Parameter]) -> Iterator[Parameter]:
    for parameter in parameters:
        yield Parameter(f"{prefix}.{parameter.name}", parameter.shape, parameter.padding, parameter.whole)


def _norm(name: str, kind: str, width: int) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (width,), whole=True)
    if kind == "layer":
        yield Parameter(f"{name}.bias", (width,), whole=True)


# ------------------------------------------------------------------------------------------------ encoder and connector


def _before(model: Model, layout: Layout, tensor_rank: int, first: bool) -> Iterator[Parameter]:
    tensor, split = layout.tensor, encoder_tensor(layout)
    if first:
        yield from _under("vision", _vision(model.vision, split, tensor_rank % split))
        yield from _under("connector", _connector(model.vision, model.connector, model.language, tensor))
        yield _table("language.embedding.weight", model.language, tensor, tensor_rank)


def _vision(v: Vision, tensor: int, tensor_rank: int) -> Iterator[Parameter]:
    width, patches = v.hidden, TileGeometry(v.tile_size, v.patch).patches
    yield Parameter("patch_weight", (width, 3, v.patch, v.patch), whole=True)
    if v.patch_bias:
        yield Parameter("patch_bias", (width,), whole=True)
    if v.class_token:
        yield Parameter("class_token", (1, 1, width), whole=True)
    yield Parameter("position", (1, patches + v.class_token, width), whole=True)
    if v.first_norm:
        yield from _norm("first_norm", v.norm, width)
    if v.final_norm:
        yield from _norm("final_norm", v.norm, width)
    for number in range(v.layers):
        yield from _under(f"layers.{number}", _vision_layer(v, tensor, tensor_rank))


def _vision_layer(v: Vision, tensor: int, tensor_rank: int) -> Iterator[Parameter]:
    D, head = v.hidden, v.hidden // v.heads
    heads = padded_size(v.heads, tensor) // tensor
    dummies = heads - min(heads, max(0, v.heads - tensor_rank * heads))     # the last ranks' heads are the dummy ones
    width, empty, ffn = heads * head, dummies * head, v.ffn // tensor
    if v.layer_scale:
        yield Parameter("ls1", (D,), whole=True)
        yield Parameter("ls2", (D,), whole=True)
    for name in ("norm1", "norm2"):
        yield from _norm(name, v.norm, D)
    yield Parameter("attention.linear_qkv.weight", (3 * width, D), 3 * empty * D)
    if v.qkv_bias:
        yield Parameter("attention.linear_qkv.bias", (3 * width,), 3 * empty)
    yield Parameter("attention.linear_proj.weight", (D, width), D * empty)
    yield Parameter("attention.linear_proj.bias", (D,), whole=True)
    if v.qk_norm:
        yield Parameter("attention.q_norm.weight", (width,), empty)
        yield Parameter("attention.k_norm.weight", (width,), empty)
    yield Parameter("linear_fc1.weight", (ffn, D))
    yield Parameter("linear_fc1.bias", (ffn,))
    yield Parameter("linear_fc2.weight", (D, ffn))
    yield Parameter("linear_fc2.bias", (D,), whole=True)


def _connector(v: Vision, c: Connector, m: Language, tensor: int) -> Iterator[Parameter]:
    width, inner, out = v.hidden * c.shuffle**2, c.hidden or m.ffn, m.hidden
    yield from _norm("norm", "layer", width)
    if c.layers == 1:
        yield Parameter("linear_fc1.weight", (out // tensor, width))
    else:
        yield Parameter("linear_fc1.weight", (inner // tensor, width))
        yield Parameter("linear_fc2.weight", (out, inner // tensor))
    if c.resampler_tokens:
        yield from _under("resampler", _resampler(c, out, tensor))


def _resampler(c: Connector, width: int, tensor: int) -> Iterator[Parameter]:
    yield Parameter("queries", (c.resampler_tokens, width), whole=True)
    for number in range(c.resampler_layers):
        for name in ("norm_queries", "norm_tokens", "norm_mlp"):
            yield from _norm(f"layers.{number}.{name}", "layer", width)
        for name in ("linear_q", "linear_k", "linear_v"):
            yield Parameter(f"layers.{number}.{name}.weight", (width // tensor, width))
        yield Parameter(f"layers.{number}.linear_proj.weight", (width, width // tensor))
        yield Parameter(f"layers.{number}.linear_fc1.weight", (4 * width // tensor, width))
        yield Parameter(f"layers.{number}.linear_fc2.weight", (width, 4 * width // tensor))
    yield from _norm("norm", "layer", width)


# ------------------------------------------------------------------------------------------------------ language model


def _layers(model: Model, tensor: int, layers: range) -> Iterator[Parameter]:
    crossed = set(cross_layers(model))
    for number in layers:
        yield from _under(f"language.decoder.layers.{number}", _layer(model, tensor, number in crossed))


def _layer(model: Model, tensor: int, reads: bool) -> Iterator[Parameter]:
    m = model.language
    H, query, key, ffn = m.hidden, m.heads * m.head_dim // tensor, m.kv_heads * m.head_dim // tensor, m.ffn // tensor
    yield from _norm("input_layernorm", "rms", H)
    yield Parameter("self_attention.linear_proj.weight", (H, query))
    yield Parameter("self_attention.linear_qkv.weight", (query + 2 * key, H))
    if m.qkv_bias:
        yield Parameter("self_attention.linear_qkv.bias", (query + 2 * key,))
    if reads:
        yield from _cross(model.cross_attention, m, tensor)
    yield from _norm("pre_mlp_layernorm", "rms", H)
    yield Parameter("mlp.linear_fc1.weight", (2 * ffn, H))
    yield Parameter("mlp.linear_fc2.weight", (H, ffn))


def _cross(x: CrossAttention, m: Language, tensor: int) -> Iterator[Parameter]:
    H, query, key = m.hidden, (x.heads or m.heads) * m.head_dim // tensor, (x.kv_heads or m.kv_heads) * m.head_dim // tensor
    yield from _norm("pre_cross_attn_layernorm", "rms", H)
    yield Parameter("cross_attention.gate", (1,), whole=True)
    yield Parameter("cross_attention.linear_q.weight", (query, H))
    yield Parameter("cross_attention.linear_kv.weight", (2 * key, H))
    yield Parameter("cross_attention.linear_proj.weight", (H, query))
    if x.qk_norm:
        yield Parameter("cross_attention.q_norm.weight", (m.head_dim,), whole=True)
        yield Parameter("cross_attention.k_norm.weight", (m.head_dim,), whole=True)
    if x.ffn:
        yield Parameter("cross_attn_bda.gate", (1,), whole=True)
        yield from _norm("cross_attn_bda.norm", "rms", H)
        for name in ("linear_gate", "linear_up"):
            yield Parameter(f"cross_attn_bda.{name}.weight", (x.ffn // tensor, H))
        yield Parameter("cross_attn_bda.linear_fc2.weight", (H, x.ffn // tensor))


def _after(m: Language, tensor: int, tensor_rank: int, first: bool, last: bool) -> Iterator[Parameter]:
    if not last:
        return
    yield from _norm("language.decoder.final_layernorm", "rms", m.hidden)
    if not (m.tie_embeddings and first):
        yield _table("language.output_layer.weight", m, tensor, tensor_rank)


def _table(name: str, m: Language, tensor: int, tensor_rank: int) -> Parameter:
    """Rows of the vocabulary, padded at its end."""
    rows = padded_size(m.vocab, tensor) // tensor
    return Parameter(name, (rows, m.hidden), (rows - min(rows, max(0, m.vocab - tensor_rank * rows))) * m.hidden)
