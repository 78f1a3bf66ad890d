"""What a row needs beside what it keeps, at the moments of a step that may be its fullest. Plain arithmetic, like `activations`.

Each moment is told relative to everything that the row keeps: tensors made for it, less what is given back by then. Kernels' own
workspaces are not counted. The legend is that of `sizes`.
"""

from nvlm_train.config.fp8_layers import FC1, FC2, QKV, rounded_weights
from nvlm_train.config.layers import cross_layers
from nvlm_train.config.split import padded_size
from nvlm_train.kernels import LOGITS_AT_ONCE
from nvlm_train.planning.activations import Kept, decoder_layer
from nvlm_train.planning.first_stage import at_the_start, tied_gradient
from nvlm_train.planning.sizes import FP32, Sizes


def gather_buffer(s: Sizes) -> int:
    """Megatron's one buffer for gathered inputs under sequence parallelism, [T, H] or, where longer, the memory."""
    crossed = cross_layers(s.run.model)
    if s.slices == 1 or not s.trains("language.decoder.") or ({QKV, FC1} <= {*s.rounded} and not crossed):
        return 0        # frozen linears and those in fp8 gather into tensors of their own
    memory = padded_size(s.row.memory, s.slices) if crossed else 0
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
        moments += at_the_start(s, part)
    return max(moments)


def _at_logits(s: Sizes) -> list[int]:
    """The final norm's output beside the gradient just sent, with it gathered and the supervised of it while the logits are made, then a
    chunk of them in fp32; later the gradient in the logits' place, the memory's zero one and the output layer's backward. Compiled
    kernels need no chunk in fp32."""
    m, K = s.run.model.language, s.row.supervised
    rows = padded_size(m.vocab, s.tensor) // s.tensor
    tied = ["language.embedding.weight"] if m.tie_embeddings else []
    trains = s.trains("language.output_layer.weight", *tied)
    made = (s.row.tokens * (s.slices > 1) + K * (not trains)) * m.hidden * s.b
    chunk = 0 if s.compiled else min(max(LOGITS_AT_ONCE // rows, 1), K) * rows * FP32
    memory = -(-s.row.memory // s.slices) * m.hidden * s.b
    return [s.S * m.hidden * s.b + message(s) + max(made, chunk), memory + 2 * chunk,
            memory + (rows * m.hidden * trains + K * m.hidden) * s.b]


def _at_layers(s: Sizes, layers: range, part: Kept, last: bool) -> list[int]:
    """Backward of a feed-forward, the last layer's first: of its second linear (the gradient [T, H], gathered or the final norm's, not
    the message itself; the inner one [T, f], the weight's), of SwiGLU in one kernel (the second linear's input given back; [T, f] in and
    [T, 2f] out), and of its first (inner tensors given back; [T, 2f], [T, H] and the weight's). Full recomputation has made the layer's
    own tensors again by then; a tied table's gradient waits for its other half."""
    m, T = s.run.model.language, s.row.tokens
    f, again = m.ffn // s.tensor, 0                 # again: bytes that recomputation, of layers or of feed-forwards, has made by then
    crossed = set(cross_layers(s.run.model))
    if s.run.model.recompute == "full":
        again = max(decoder_layer(s, number, number in crossed, True)[0] for number in {layers[-1], *(crossed & set(layers))}) - s.S * m.hidden * s.b
    down, up = (any(s.trains(f"language.decoder.layers.{n}.mlp.linear_{name}.weight") for n in layers) for name in ("fc2", "fc1"))
    if "mlp" in s.again:
        again = T * f * ((2 if s.compiled else 4) * s.b + down * s.input_bytes(FC2))
    second = T * m.hidden * (s.slices > 1 or last) + T * f + m.hidden * f * down
    kept = down * s.input_bytes(FC2)
    first = (s.S * m.hidden + T * m.hidden + 2 * T * f + 2 * f * m.hidden * up) * s.b - ((2 if s.compiled else 4) * s.b + kept) * T * f
    between = (3 * s.b - kept) * T * f if s.compiled else 0
    casts = _casts_at_the_backward(s, down, up)
    moments = (second * s.b + casts[0], between, first + casts[1], *_at_attention(s))
    return [again + tied_gradient(s) - part.logits + moment for moment in moments]


def _casts_at_the_backward(s: Sizes, down: bool, up: bool) -> tuple[int, int]:
    """Of a feed-forward's second and first linear in fp8, a byte a number: the gradient, and where the weight is trained (`down`, `up`) the
    gradient and the input turned, the latter gathered first under sequence parallelism."""
    H, T, f = s.run.model.language.hidden, s.row.tokens, s.run.model.language.ffn // s.tensor
    second = T * (H + down * (H + f))
    first = T * (2 * f + up * (2 * f + H * (1 + (s.slices > 1))))
    return second * (FC2 in s.rounded), first * (FC1 in s.rounded)


def cast_weights(s: Sizes, layers: range) -> int:
    """Both orders of the weights of linear layers in fp8, a byte a number, from their first row to the step's end."""
    return 2 * len(layers) * rounded_weights(s.run.model, s.tensor)


def _at_attention(s: Sizes) -> list[int]:
    """Backward of attention over other ranks' keys: gradients of what was read, then of what was gathered, whole and in fp32. The
    layer's feed-forward is given back by then."""
    if s.row.attended is None:
        return []
    m, T, read = s.run.model.language, s.row.tokens, s.row.attended
    q, k, f = m.heads * m.head_dim // s.tensor, m.kv_heads * m.head_dim // s.tensor, m.ffn // s.tensor
    gathered = T * s.run.layout.context * 2 * k
    released = (2 if s.compiled else 4) * T * f * s.b
    return [2 * T * q * s.b + 2 * read * k * s.b - released, gathered * (s.b + FP32) + 2 * read * k * s.b - released]
