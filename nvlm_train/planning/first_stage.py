"""The fullest moments of the first stage: what encoder, connector, fusion and embedding need beside what a row keeps, forward and backward.

Autograd takes nodes by when they were made: the embedding, which came first, comes last, and its gradient waits until then. As in
`workspace`, moments are told relative to all that the row keeps; the legend is that of `sizes`.
"""

from nvlm_train.config.split import encoder_tensor, padded_size, tiles_each
from nvlm_train.geometry import geometry_of
from nvlm_train.planning.activations import Kept, connector, vision_layer
from nvlm_train.planning.sizes import FP32, Sizes


def at_the_start(s: Sizes, part: Kept) -> list[int]:
    """Of each moment the whole that the row then needs, less what it keeps in the end."""
    moments = _forward(s, part)
    if s.trains("vision.", "connector."):
        moments += [tied_gradient(s) + _hidden_gradient(s) + moment for moment in _backward(s, part)]
    if s.trains("language.embedding.weight"):
        moments.append(3 * tied_gradient(s) or _table(s) + _hidden_gradient(s))       # tied: both gradients, and their sum
    return [moment - part.total for moment in moments]


def tied_gradient(s: Sizes) -> int:
    """The output layer's of a table that is the embedding's too: it waits for the other, from the logits to the backward's end."""
    return _table(s) if s.run.model.language.tie_embeddings and s.trains("language.embedding.weight") else 0


def _table(s: Sizes) -> int:
    m = s.run.model.language
    return padded_size(m.vocab, s.tensor) // s.tensor * m.hidden * s.b


def _hidden_gradient(s: Sizes) -> int:
    """Of the embedded tokens, where they are learned."""
    return _text(s) if s.trains("language.embedding.weight") else 0


def _text(s: Sizes) -> int:
    """Embedded tokens, [T, H], and those of the memory's tags."""
    return (s.row.tokens + s.row.tags) * s.run.model.language.hidden * s.b


def _seen(s: Sizes) -> tuple[int, int]:
    """Bytes of the connector's output: of a rank's own tiles, and of the row's."""
    own = s.row.tiles * geometry_of(s.run.model).tokens * s.run.model.language.hidden * s.b
    return own, own * s.run.layout.context


def _selects(s: Sizes) -> bool:
    """Whether fusion takes some visual tokens out of all, not all as they are."""
    return s.row.memory > 0 or s.row.placed is not None


def _forward(s: Sizes, part: Kept) -> list[int]:
    """The encoder's, with nothing but the embedded text; fusion, of what came out of the connector, what was selected of it, the sequence
    with tiles in it, and the memory before and after they were put into it."""
    row, width, (own, seen) = s.row, s.run.model.language.hidden * s.b, _seen(s)
    selected = own if row.placed is None else row.placed * width
    fused = _text(s) + seen + selected * _selects(s) + (row.tokens * (row.shown > 0) + 2 * row.memory) * width
    return [_text(s) + _encoder(s), part.vision + part.connector + fused]


def _backward(s: Sizes, part: Kept) -> list[int]:
    """Of fusion, the connector and the encoder, layers and logits given back."""
    moments = [part.vision + moment for moment in (part.connector + _at_fusion(s), *_at_connector(s, part))]
    if s.trains("vision."):
        v = s.run.model.vision
        again = vision_layer(s) - s.N * v.hidden * s.b if "vision" in s.again else 0
        moments.append(part.vision + again + s.N * (3 * v.hidden + 2 * v.ffn // s.tensor) * s.b)
    return moments


def _at_fusion(s: Sizes) -> int:
    """The sequence's gradient, the visual tokens' in it, and these as they were put in; where some were selected, their gradient among
    zeros for all in place of these, before and after. Of a row that is shared out, all tokens' gradient and the same in fp32, added up
    to the rank's own."""
    own, seen = _seen(s)
    sequence = s.row.tokens * s.run.model.language.hidden * s.b * (s.row.shown > 0)
    spread = (3 if _selects(s) else 2) * seen + sequence
    return max(spread, (seen * (s.b + FP32) + own * FP32) // s.b) if s.run.layout.context > 1 else spread


def _at_connector(s: Sizes, part: Kept) -> list[int]:
    """Of its second linear (the gradient, the inner one, the weight's) and of its first (inner tensors given back; their gradient, the
    input's, the weight's). Computed again, it has made its own tensors and its output by then, whose gradient stays. Of a resampler
    the sources' gradients of two linears; nothing is taken to be given back."""
    c, m, out = s.run.model.connector, s.run.model.language, _seen(s)[0]
    width, inner = s.run.model.vision.hidden * c.shuffle**2, (c.hidden or m.ffn if c.layers == 2 else m.hidden) // s.tensor
    again = "connector" in s.again
    inside, held = (part.connector + connector(s), 2 * out) if again else (part.connector, 0)
    given_back = s.U * inner * s.b * (1 + s.trains("connector.linear_fc2.")) if c.layers == 2 and not c.resampler_tokens else 0
    first = inside - given_back + held + (s.U * (inner + width) + width * inner) * s.b
    second = inside + max(held, out) + (s.U + m.hidden) * inner * s.b * (c.layers == 2)
    sources = (s.U + s.row.tiles * c.resampler_tokens) * m.hidden * s.b
    return [first, second] + [inside + held + 2 * sources] * (c.resampler_tokens > 0)


def _encoder(s: Sizes) -> int:
    """A forward that keeps nothing. The fullest of the pixels (bytes, and fp32 before and after a step of normalising), of QK norm
    (input, its norm, [q k v], q, and of k a copy and two in fp32), of the MLP's inner tensors before and after bias or activation,
    and of its output before and after bias beside the layer's input, the attention's branch and their sum. With tiles shared out
    (`layout.share_tiles`) of a rank's own; then beside the features of all there are the own ones, as they came and as they are sent."""
    v, split = s.run.model.vision, encoder_tensor(s.run.layout)
    tiles = s.row.tiles if split == s.tensor else tiles_each(s.row.tiles, s.tensor)
    N, pixels = s.N * tiles // max(s.row.tiles, 1), tiles * 3 * v.tile_size**2 * 2 * FP32
    w, f, D = padded_size(v.heads, split) // split * (v.hidden // v.heads), v.ffn // split, v.hidden
    attention = (2 * D + 5 * w) * s.b + (2 * w * FP32 if v.qk_norm else 0)
    seen = (s.N + 2 * N) * D * s.b if split < s.tensor else 0
    return max(pixels, N * attention, N * (4 * D + 2 * f) * s.b, N * (5 * D + f) * s.b, seen)
