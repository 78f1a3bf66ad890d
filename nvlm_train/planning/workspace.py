"""What a row needs beside what it keeps, at the moments of a step that may be its fullest. Plain arithmetic, like `activations`.

Each moment is told relative to everything that the row keeps: tensors made for it, less what is given back by then. Kernels' own
workspaces are not counted. The legend is that of `sizes`.
"""

from nvlm_train.config.layers import cross_layers
from nvlm_train.config.split import padded_size
from nvlm_train.planning.activations import Kept, decoder_layer
from nvlm_train.planning.sizes import FP32, Sizes


def gather_buffer(s: Sizes) -> int:
    """Megatron's one buffer for gathered inputs under sequence parallelism, [T, H] or, where longer, the memory."""
    if s.slices == 1 or not s.trains("language.decoder."):      # frozen linears gather into tensors of their own
        return 0
    memory = -(-s.row.memory // s.slices) * s.slices if cross_layers(s.run.model) else 0
    return max(s.row.tokens, memory) * s.run.model.language.hidden * s.b


def message(s: Sizes) -> int:
    """What one pipeline stage sends another, [S, H] with room for the memory."""
    return s.exchanged * s.run.model.language.hidden * s.b if s.run.layout.pipeline > 1 else 0


def waiting(s: Sizes, pipeline_rank: int) -> int:
    """Messages on their way at the fullest moment, beside inputs and outputs of the rows in flight: the gradient from behind and the one
    for before; the interleaved schedule receives one of each ahead."""
    last = pipeline_rank == s.run.layout.pipeline - 1
    if s.run.layout.virtual > 1:
        return 2 if last else 4
    return (pipeline_rank > 0) + (not last)


def largest(s: Sizes, layers: range, part: Kept, first: bool, last: bool) -> int:
    """The fullest moment of a row in one (virtual) stage."""
    moments = [0]
    if last:
        moments += _at_logits(s)
    if part.layers:
        moments += _at_layers(s, layers, part, last)
    if first:
        moments += _at_the_start(s, part)
    return max(moments)


def _at_logits(s: Sizes) -> list[int]:
    """Logits beside their fp32 form, the final norm's output and the gradient just sent; as gradients, with the memory's zero one; then,
    the fp32 form given back, the output layer's backward."""
    m, K = s.run.model.language, s.row.supervised
    rows = padded_size(m.vocab, s.tensor) // s.tensor
    tied = ["language.embedding.weight"] if m.tie_embeddings else []
    weight = rows * m.hidden * s.trains("language.output_layer.weight", *tied)
    logits, fp32 = K * rows * s.b, K * rows * FP32
    memory = -(-s.row.memory // s.slices) * m.hidden * s.b
    return [logits + s.S * m.hidden * s.b + message(s), logits + memory, logits + memory - fp32 + (weight + K * m.hidden) * s.b]


def _at_layers(s: Sizes, layers: range, part: Kept, last: bool) -> list[int]:
    """Backward of a feed-forward, the last layer's first: of its second linear (the gradient [T, H], gathered or the final norm's, not
    the message itself; the inner one [T, f], the weight's), and of its first (inner tensors given back; [T, 2f], [T, H] and the weight's). Full recomputation has made the
    layer's own tensors again by then."""
    m, T = s.run.model.language, s.row.tokens
    f, again = m.ffn // s.tensor, 0
    crossed = set(cross_layers(s.run.model))
    if s.run.model.recompute == "full":
        again = max(decoder_layer(s, number, number in crossed, True)[0] for number in {layers[-1], *(crossed & set(layers))}) - s.S * m.hidden * s.b
    down, up = (any(s.trains(f"language.decoder.layers.{n}.mlp.linear_{name}.weight") for n in layers) for name in ("fc2", "fc1"))
    second = T * m.hidden * (s.slices > 1 or last) + T * f + m.hidden * f * down
    first = s.S * m.hidden + T * m.hidden + 2 * T * f + 2 * f * m.hidden * up - (4 + down) * T * f
    return [again - part.logits + second * s.b, again - part.logits + first * s.b]


def _at_the_start(s: Sizes, part: Kept) -> list[int]:
    """Of the first stage: the encoder's forward, when the row keeps nothing yet; and the last of its backward, when layers and
    logits are given back: connector (gradients of its widest tensor and weight), embedding (its whole table)."""
    model, m = s.run.model, s.run.model.language
    inner = (model.connector.hidden or m.ffn if model.connector.layers == 2 else m.hidden) // s.tensor
    width = model.vision.hidden * model.connector.shuffle**2
    before = -part.layers - part.logits
    embeds = s.trains("language.embedding.weight")
    hidden = s.row.tokens * m.hidden * (embeds or model.architecture != "nvlm_x")       # its gradient, where tiles are among it
    moments = [_encoder(s) - part.total]
    if s.trains("connector.", "vision."):
        moments.append(before + (hidden + s.U * (m.hidden + inner) + s.U * width + width * inner) * s.b)
    if embeds:
        moments.append(before + (padded_size(m.vocab, s.tensor) // s.tensor * m.hidden + 2 * s.row.tokens * m.hidden) * s.b)
    if s.trains("vision."):
        moments.append(before - part.connector + s.N * (3 * model.vision.hidden + 2 * model.vision.ffn // s.tensor) * s.b)
    return moments


def _encoder(s: Sizes) -> int:
    """A forward that keeps nothing. The fullest of the pixels (bytes, and fp32 before and after a step of normalising), of QK norm
    (input, its norm, [q k v], q, and of k a copy and two in fp32), of the MLP's inner tensors before and after bias or activation,
    and of its output before and after bias beside the layer's input, the attention's branch and their sum."""
    v = s.run.model.vision
    w, f, D = padded_size(v.heads, s.tensor) // s.tensor * (v.hidden // v.heads), v.ffn // s.tensor, v.hidden
    pixels = s.row.tiles * 3 * v.tile_size**2 * 2 * FP32
    attention = (2 * D + 5 * w) * s.b + (2 * w * FP32 if v.qk_norm else 0)
    return max(pixels, s.N * attention, s.N * (4 * D + 2 * f) * s.b, s.N * (5 * D + f) * s.b)
