"""Bytes that one row's forward keeps for its backward, term by term: what our layers save on a GPU with torch's fused kernels.

Each function states its terms as [rows, width] of the compute dtype unless said otherwise. A term is kept only where a gradient needs
it: a linear keeps its input if its weight is trained, a norm or a product if a gradient passes. `skeleton` checks the sums.

The legend is that of `sizes`.
"""

from dataclasses import dataclass

from nvlm_train.config.fp8_layers import FC1, FC2, PROJ, QKV
from nvlm_train.config.layers import cross_layers
from nvlm_train.config.schema import Run
from nvlm_train.config.split import encoder_tensor, padded_size, stage_layers
from nvlm_train.geometry import TileGeometry, geometry_of
from nvlm_train.model.freeze import is_cross_attention
from nvlm_train.planning.rows import RowSize
from nvlm_train.planning.sizes import FP32, INT64, Sizes, sizes_of


@dataclass(frozen=True)
class Kept:
    """Bytes that one row leaves behind in one (virtual) stage until its backward."""

    vision: int = 0
    connector: int = 0
    fusion: int = 0         # embedded tokens with the tiles' among them, and the image memory
    layers: int = 0
    logits: int = 0         # final norm, output layer, cross-entropy

    @property
    def total(self) -> int:
        return self.vision + self.connector + self.fusion + self.layers + self.logits


def kept(run: Run, row: RowSize, pipeline_rank: int) -> list[Kept]:
    """Of each (virtual) stage of a pipeline rank. row: the whole row, whoever shares it."""
    s, found = sizes_of(run, row), []
    chunks = stage_layers(run.model.language.layers, run.layout, pipeline_rank)
    for number, layers in enumerate(chunks):
        first = pipeline_rank == 0 and number == 0
        last = pipeline_rank == run.layout.pipeline - 1 and number == len(chunks) - 1
        carries = hidden_carries(s, layers)
        inner, carries = _layers(s, layers, first, carries)
        found.append(Kept(*(_vision(s), _connector(s), _fusion(s)) if first else (0, 0, 0), inner, _logits(s, carries) if last else 0))
    return found


def hidden_carries(s: Sizes, layers: range) -> bool:
    """Whether hidden states enter a stage with a gradient: `Nvlm.route_gradients`."""
    frozen = not any(name.startswith("language.") and not is_cross_attention(name) for name in s.trained)
    first = layers.start if len(layers) else 0
    return not (s.run.model.architecture == "nvlm_x" and frozen and first <= min(cross_layers(s.run.model)))


# ------------------------------------------------------------------------------------------------ encoder and connector


def _vision(s: Sizes) -> int:
    """A trained encoder, all of it (parts of one cost at most that); a frozen one runs without autograd and keeps nothing. Of layers that
    are computed again, the input."""
    v, n = s.run.model.vision, s.row.tiles
    if not s.trains("vision."):
        return 0
    pixels = n * 3 * v.tile_size**2 * s.b
    layer = s.N * v.hidden * s.b if "vision" in s.again else vision_layer(s)
    return pixels + v.layers * layer + (v.first_norm + v.final_norm) * _norm(s, s.N, v.hidden, v.norm)


def vision_layer(s: Sizes) -> int:
    """Inputs of both norms and of both linears behind them, the branches that LayerScale multiplies; [q k v], the attention's
    output and one number a row and head; the two inner tensors of the MLP, and quick GELU's sigmoid. QK norm keeps of q and k: fp32 twice, their rounded
    form and their normed form."""
    v = s.run.model.vision
    heads = padded_size(v.heads, s.tensor) // s.tensor         # a trained encoder is split, its tiles are not shared out
    D, w, f = v.hidden, heads * (v.hidden // v.heads), v.ffn // s.tensor
    wide = (4 + 2 * v.layer_scale) * D + 4 * w + (2 + (v.activation == "quick_gelu")) * f
    total = s.N * wide * s.b + 2 * s.N * _statistics(v.norm) + s.N * heads * FP32
    if v.qk_norm:
        total += 2 * s.N * (2 * w * FP32 + 2 * w * s.b + FP32)
    return total


def _connector(s: Sizes) -> int:
    """What `connector` keeps; computed again, the features, as they came out of the encoder or were gathered."""
    if "connector" in s.again and s.trains("vision.", "connector."):
        v, patches = s.run.model.vision, s.N
        if encoder_tensor(s.run.layout) < s.tensor:     # gathered with room for as many tiles from every rank
            patches = padded_size(s.row.tiles, s.tensor) * TileGeometry(v.tile_size, v.patch).patches
        return patches * v.hidden * s.b
    return connector(s)


def connector(s: Sizes) -> int:
    """LayerNorm's input and output [U, W], and of two linears the inner [U, inner / tensor] before and after GELU."""
    c, m = s.run.model.connector, s.run.model.language
    width, inner = s.run.model.vision.hidden * c.shuffle**2, (c.hidden or m.ffn) // s.tensor
    below = s.trains("vision.")
    total = 0
    if below or s.trains("connector.norm."):
        below, total = True, total + _norm(s, s.U, width, "layer")
    if s.trains("connector.linear_fc1."):
        below, total = True, total + s.U * width * s.b
    if c.layers == 2:
        total += s.U * inner * s.b * (below + s.trains("connector.linear_fc2."))
    return total + (_resampler(s) if c.resampler_tokens and s.trains("vision.", "connector.") else 0)


def _resampler(s: Sizes) -> int:
    """A trained resampler. P queries of all tiles: their norms' inputs and outputs; the U + P sources; q, k, v and the attention's
    output; the MLP's two inner tensors. The first layer's queries are a parameter."""
    c, H = s.run.model.connector, s.run.model.language.hidden
    P, h = s.row.tiles * c.resampler_tokens, H // s.tensor
    heads = s.run.model.language.heads // s.tensor
    layer = (4 * P * H + 2 * P * h + 2 * P * 4 * h + (s.U + P) * (H + 2 * h)) * s.b + P * heads * FP32
    norms = (2 * P + s.U) * _statistics("layer")
    tokens = s.U * H * s.b                                  # the tiles' tokens, which every layer's norm reads
    return tokens + c.resampler_layers * (layer + norms) + P * _statistics("layer")


def _norm(s: Sizes, rows: int, width: int, kind: str) -> int:
    """A norm's input and its statistics."""
    return rows * (width * s.b + _statistics(kind))


def _statistics(kind: str) -> int:
    """Of one row, fp32: LayerNorm's mean and deviation, RMSNorm's deviation."""
    return 2 * FP32 if kind == "layer" else FP32


# -------------------------------------------------------------------------------------------------------------- fusion


def _fusion(s: Sizes) -> int:
    """The tiles' tokens as they were put into sequence and memory, the text that the memory's tags were cut from, and the places of
    everything."""
    H, row, model = s.run.model.language.hidden, s.row, s.run.model
    tags = row.tags if model.architecture == "nvlm_h" else 0
    embeds, seen = s.trains("language.embedding.weight"), s.trains("vision.", "connector.")
    total = 0
    if embeds:
        total += (row.tokens + tags) * (INT64 + 1) if s.tensor > 1 else tags and (row.tokens + tags) * INT64
    each = geometry_of(model).tokens
    if seen:
        shared = row.placed is not None         # then it is also noted which of all tiles' tokens are here
        total += (row.placed if shared else row.tiles * each) * (H * s.b + (1 + shared) * INT64)
    if row.memory:
        total += tags and embeds and (row.tokens + tags) * H * s.b
    return total


# -------------------------------------------------------------------------------------------------------------- layers


def _layers(s: Sizes, layers: range, first: bool, carries: bool) -> tuple[int, bool]:
    """(bytes, whether the last layer's output carries a gradient). The first norm's input is the tensor that the stage before
    sent, room for the memory included; on the first stage the sequence and the memory, whole (a rank's slice of them is a view)."""
    H, crossed = s.run.model.language.hidden, set(cross_layers(s.run.model))
    entering = s.row.tokens if first else s.exchanged
    full = s.run.model.recompute == "full"
    remembers = bool(crossed) if full else s.trains(*(f"language.decoder.layers.{n}.cross_attention.linear_kv.weight" for n in crossed & set(layers)))
    total = (entering - s.S) * H * s.b if carries or full or (remembers and not first) else 0
    if remembers and first:
        total += -(-s.row.memory // s.slices) * s.slices * H * s.b
    if full:
        carries = carries or bool(crossed)          # the memory is an argument of every recomputed layer
        if not carries:
            return total, False
        angles = 0 if s.compiled else s.row.tokens * s.run.model.language.head_dim * FP32
        return total + len(layers) * s.S * H * s.b + angles, True
    if s.row.attended is not None and carries:
        total += s.row.attended * INT64
    if crossed & set(layers) and "cross_attention" not in s.again:
        total += (s.row.readers + s.row.keys) * INT64
    for number in layers:
        cost, carries = decoder_layer(s, number, number in crossed, carries, s.again)
        total += cost
    if s.compiled and carries and "attention" not in s.again:
        total += s.row.tokens * s.run.model.language.head_dim * FP32     # cosines and sines, for all layers
    return total, carries


def decoder_layer(s: Sizes, number: int, reads: bool, carries: bool, again: frozenset[str] = frozenset()) -> tuple[int, bool]:
    """One layer: (bytes, whether its output carries a gradient). Attention, cross-attention where it `reads`, feed-forward.
    again: the parts of it that are computed again."""
    cost, carries = _self_attention(s, f"language.decoder.layers.{number}", carries, again)
    if reads:
        more, carries = _cross_attention(s, f"language.decoder.layers.{number}", carries, again)
        cost += more
    more, carries = _feed_forward(s, f"language.decoder.layers.{number}", carries, again)
    return cost + more, carries


def _self_attention(s: Sizes, at: str, carries: bool, again: frozenset[str]) -> tuple[int, bool]:
    """Norm's input and output [S, H]; q and the output, 2 [T, q], and k and v, 2 [T, k] (of a row that is shared out, those that are
    read of all ranks'), with one fp32 number a row and head. Recomputed: [q k v] in place of them (and q by itself; where positions are
    not compiled, q and k turned), the output only for the projection's weight. Not compiled: cosines and sines of q and of k,
    4 [T, head]."""
    m, T = s.run.model.language, s.row.tokens
    read = T if s.row.attended is None else s.row.attended
    q, k = m.heads * m.head_dim // s.tensor, m.kv_heads * m.head_dim // s.tensor
    selective = "attention" in again
    total, passes = _normed(s, f"{at}.input_layernorm", carries, f"{at}.{QKV}.weight", each=s.input_bytes(QKV))
    passes = passes or s.trains(f"{at}.self_attention.linear_qkv.bias")
    projects = s.trains(f"{at}.self_attention.linear_proj.weight")
    if passes:
        total += 0 if s.compiled else 4 * T * m.head_dim * s.b
        turned = (q if m.kv_heads > s.tensor else 0) if s.compiled else q + k       # q is a view of [q k v] where it has one group
        whole = 2 * (T * q + read * k) * s.b + T * (m.heads // s.tensor) * FP32
        total += T * (q + 2 * k + turned) * s.b if selective else whole
    if projects and (selective or not passes or PROJ in s.rounded):
        total += T * q * s.input_bytes(PROJ)
    return total, carries or passes or projects


def _normed(s: Sizes, norm: str, carries: bool, *linears: str, each: int | None = None) -> tuple[int, bool]:
    """A norm and the linears that read it, [S, H] each side: (bytes, whether their output carries a gradient). each: bytes of a number that
    the linears keep, if not the compute dtype's."""
    H, total = s.run.model.language.hidden, 0
    if carries or s.trains(f"{norm}.weight"):
        carries, total = True, _norm(s, s.S, H, "rms")
    if s.trains(*linears):
        carries, total = True, total + s.S * H * (each or s.b)
    return total, carries


def _feed_forward(s: Sizes, at: str, carries: bool, again: frozenset[str]) -> tuple[int, bool]:
    """Norm's input and output; [T, 2f] of the first linear, and the product of its halves for the second linear's weight. Not compiled:
    SiLU's output too, and the other half shifted by Megatron's offset (a copy). Computed again, it keeps its input, the norm's output."""
    f, T = s.run.model.language.ffn // s.tensor, s.row.tokens
    if "mlp" in again:
        before, passes = _normed(s, f"{at}.pre_mlp_layernorm", carries)
        return before + s.S * s.run.model.language.hidden * s.b * passes, passes
    total, passes = _normed(s, f"{at}.pre_mlp_layernorm", carries, f"{at}.{FC1}.weight", each=s.input_bytes(FC1))
    down = s.trains(f"{at}.{FC2}.weight")
    return total + T * f * ((2 if s.compiled else 4) * passes * s.b + down * s.input_bytes(FC2)), carries or passes or down


def _cross_attention(s: Sizes, at: str, carries: bool, again: frozenset[str]) -> tuple[int, bool]:
    """Norm's input and output; what the readers' queries [R, q] and their keys and values [keys, k] give, [R, q]; that
    among all tokens [T, q] for the projection's weight, and the projection's output [S, H] for the gate. Computed again, of what is
    read only queries [T, q], keys and values [M, 2k] are kept."""
    x, m, row = s.run.model.cross_attention, s.run.model.language, s.row
    heads, groups = (x.heads or m.heads) // s.tensor, (x.kv_heads or m.kv_heads) // s.tensor
    q, own = heads * m.head_dim, f"{at}.cross_attention"
    total, asks = _normed(s, f"{at}.pre_cross_attn_layernorm", carries, f"{own}.linear_q.weight")
    if x.qk_norm:
        total += row.tokens * (q * s.b + heads * FP32) * (asks or s.trains(f"{own}.q_norm.weight"))
        total += row.memory * (2 * groups * m.head_dim * s.b + groups * FP32)
    k = groups * m.head_dim
    if "cross_attention" in again:
        memory = padded_size(row.memory, s.slices)
        total += (row.tokens * q + memory * (1 if x.qk_norm else 2) * k) * s.b
    else:
        total += 2 * (row.readers * q + row.keys * k) * s.b + row.readers * heads * FP32
    total += row.tokens * q * s.b * s.trains(f"{own}.linear_proj.weight")
    total += s.S * m.hidden * s.b * s.trains(f"{own}.gate")
    return total + (_own_feed_forward(s, f"{at}.cross_attn_bda") if x.ffn else 0), True


def _own_feed_forward(s: Sizes, own: str) -> int:
    """As the layer's own, from two linears: [T, f] of each, SiLU's output, the product, and the output [S, H] for the gate."""
    m, f = s.run.model.language, s.run.model.cross_attention.ffn // s.tensor
    total, _ = _normed(s, f"{own}.norm", True, f"{own}.linear_gate.weight", f"{own}.linear_up.weight")
    return (total + s.row.tokens * f * s.b * (3 + s.trains(f"{own}.linear_fc2.weight"))
            + s.S * m.hidden * s.b * s.trains(f"{own}.gate"))


# -------------------------------------------------------------------------------------------------------------- logits


def _logits(s: Sizes, carries: bool) -> int:
    """Final norm's input [S, H], the supervised rows [K, H], their logits [K, V / tensor] and three numbers of cross-entropy each."""
    m, K = s.run.model.language, s.row.supervised
    rows = padded_size(m.vocab, s.tensor) // s.tensor
    tied = ["language.embedding.weight"] if m.tie_embeddings else []
    total = _norm(s, s.S, m.hidden, "rms") if carries or s.trains("language.decoder.final_layernorm.weight") else 0
    total += K * m.hidden * s.b * s.trains("language.output_layer.weight", *tied)
    return total + K * (rows * s.b + INT64 + 2 * FP32)
