"""What a model costs: parameters per component, useful floating-point operations of a step, datasheet peaks of devices.

Plain arithmetic over the configuration, no tensors. An operation is counted if the result needs it, whatever the machine did:
real tokens only (no padding), causal attention over each sample's own length, logits of supervised tokens only, backward only
where a gradient is used, recomputation never. A multiply-add is two operations. Norms, activations and softmax are left out
(well below one percent), as in every published MFU.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import NamedTuple

from nvlm_train.config.layers import cross_layers, may_train
from nvlm_train.config.schema import Connector, CrossAttention, Language, Model, Train, Vision
from nvlm_train.geometry import TileGeometry
from nvlm_train.model.parameters import whole_parameters

COMPONENTS = ("vision", "connector", "language", "cross_attention")

# Dense bf16 peak in FLOP/s from the makers' datasheets (no sparsity). The first entry that occurs in the device's name wins,
# so narrower names come first.
PEAK_BF16 = {
    "GB200": 2500e12, "B200": 2250e12,
    "H200": 989e12, "GH200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H800": 989e12, "H20": 148e12,
    "A100": 312e12, "A800": 312e12, "A10G": 70e12, "A10": 125e12, "A40": 149.7e12, "A30": 165e12,
    "RTX 6000 Ada": 364e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12,
    "MI325X": 1307e12, "MI300X": 1307e12, "MI250X": 383e12,
}


@dataclass(frozen=True)
class Parts:
    """One number per component. The language model's cross-attention (X and H) counts for itself, not in `language`."""

    vision: float = 0
    connector: float = 0
    language: float = 0
    cross_attention: float = 0

    @property
    def total(self) -> float:
        return sum(astuple(self))

    def __add__(self, other: "Parts") -> "Parts":
        return Parts(*(a + b for a, b in zip(astuple(self), astuple(other))))

    def scaled(self, factor: float) -> "Parts":
        return Parts(*(number * factor for number in astuple(self)))


class SampleWork(NamedTuple):
    """What a sample asks of the model.

    tokens: those of its sequence, visual ones included; tiles: all of its images; supervised: tokens with a loss.
    memory_tokens: tokens that cross-attention reads, each once however many read it, tags included (X: no visual token is in
    the sequence; H: the thumbnail's are); readers: tokens of the sequence that read any; pairs: (reader, memory token) pairs.
    cached: tiles whose features were read and not computed.
    """

    tokens: int
    tiles: int
    supervised: int
    memory_tokens: int = 0
    readers: int = 0
    pairs: int = 0
    cached: int = 0


class LanguageWork(NamedTuple):
    """Operations of the language model: attention and its projections, feed-forward, logits."""

    self_attention: int
    mlp: int
    output: int


# ---------------------------------------------------------------------------------------------------------- parameters


def parameters(model: Model) -> Parts:
    """Parameters of the whole model, exact, what tensor parallelism pads not counted."""
    counts = dict.fromkeys(COMPONENTS, 0)
    for parameter in whole_parameters(model):
        counts[parameter.component] += parameter.elements
    return Parts(**counts)


def _connector_input(v: Vision, c: Connector) -> int:
    return v.hidden * c.shuffle**2


def _connector_linears(v: Vision, c: Connector, m: Language) -> list[tuple[int, int]]:
    """(in, out) of each linear, first to last (paper section 4.5: the inner width is the language model's ffn)."""
    if c.layers == 1:
        return [(_connector_input(v, c), m.hidden)]
    inner = c.hidden or m.ffn
    return [(_connector_input(v, c), inner), (inner, m.hidden)]


def _attention_linears(m: Language) -> int:
    """Query, key, value and output projections of one layer."""
    return m.hidden * (2 * m.heads + 2 * m.kv_heads) * m.head_dim


def _mlp_linears(m: Language) -> int:
    """Gate, up and down of one layer."""
    return 3 * m.hidden * m.ffn


def _cross_widths(x: CrossAttention, m: Language) -> tuple[int, int]:
    """Width of all query heads and of all key heads (values are as wide); heads are the language model's in number and size."""
    return (x.heads or m.heads) * m.head_dim, (x.kv_heads or m.kv_heads) * m.head_dim


# --------------------------------------------------------------------------------------------------------------- FLOPs


def trained_components(model: Model, train: Train) -> frozenset[str]:
    """The components in which `train.trainable` may train something: named whole, in part, or reached by a wildcard.

    Cross-attention lies inside the language model: what may reach the one may reach the other, unless its parameters are named
    (cross_attention, pre_cross_attn_layernorm, cross_attn_bda).
    """
    found: set[str] = set()
    for pattern in train.trainable:
        reached = {component for component in COMPONENTS if may_train([pattern], component)}
        if "language" in reached:
            reached.add("cross_attention")
            if "cross_att" in pattern:
                reached.remove("language")
        found |= reached
    return frozenset(found if cross_layers(model) else found - {"cross_attention"})


def useful_flops(model: Model, trained: Iterable[str], samples: Iterable[SampleWork]) -> Parts:
    """Operations of one optimizer step over `samples` (forward, and backward where a gradient is needed).

    trained: components with trainable parameters. Gradients flow down to the lowest of them: a frozen language model costs
    forward alone for text, forward and input gradients for samples with visual tokens in the sequence, and where all tiles are
    memory (X) input gradients only above its first cross-attention.
    """
    found = useful_by_part(model, trained, samples)
    return Parts(found["vision"], found["connector"], sum(found[part] for part in LanguageWork._fields), found["cross_attention"])


def useful_by_part(model: Model, trained: Iterable[str], samples: Iterable[SampleWork]) -> dict[str, int]:
    """The same with the language model taken apart: vision, connector, self_attention, mlp, output, cross_attention."""
    trained = frozenset(trained)
    total = dict.fromkeys(("vision", "connector", *LanguageWork._fields, "cross_attention"), 0)
    for sample in samples:
        total["vision"] += _tile_flops(model.vision) * (sample.tiles - sample.cached) * (3 if "vision" in trained else 1)
        total["connector"] += _connector_flops(model, trained) * sample.tiles
        for part, number in _language_flops(model, trained, sample)._asdict().items():
            total[part] += number
        total["cross_attention"] += _cross_flops(model, trained, sample)
    return total


def _tile_flops(v: Vision) -> int:
    """Forward of one tile through the encoder: its patches and a class token, attention in both directions."""
    D, patches = v.hidden, TileGeometry(v.tile_size, v.patch).patches
    n = patches + v.class_token
    layer = n * 2 * (4 * D * D + 2 * D * v.ffn) + 4 * n * n * D
    return v.layers * layer + patches * 2 * 3 * v.patch**2 * D


def _connector_flops(model: Model, trained: frozenset[str]) -> int:
    """One tile's visual tokens, forward and backward. The lowest linear needs an input gradient only under a trained encoder."""
    v, c, m = model.vision, model.connector, model.language
    tokens = TileGeometry(v.tile_size, v.patch, c.shuffle).tokens           # before a resampler
    weight_gradient, below = "connector" in trained, "vision" in trained
    total = 0
    for weights in (wide * high for wide, high in _connector_linears(v, c, m)):
        total += tokens * 2 * weights * (1 + weight_gradient + below)
        below = below or weight_gradient
    if c.resampler_tokens:
        linears, attention = _resampler_forward(c, m.hidden, tokens)
        total += linears * (1 + weight_gradient + below) + attention * (3 if below else 1)
    return total


def _resampler_forward(c: Connector, H: int, tokens: int) -> tuple[int, int]:
    """(linears, attention) of one tile: the learned queries read the tile's tokens and each other, then their feed-forward."""
    queries, keys = c.resampler_tokens, tokens + c.resampler_tokens
    linears = 2 * H * H * (2 * queries + 2 * keys + 8 * queries)
    return c.resampler_layers * linears, c.resampler_layers * 4 * queries * keys * H


def _gradient_depth(model: Model, trained: frozenset[str], sample: SampleWork) -> tuple[int, int]:
    """How many layers, from the top, hand a gradient down through their self-attention, and how many through their feed-forward.

    All of them if the language model is trained or what makes the visual tokens of its sequence; else those above the first
    cross-attention, which stands between the two, if that has something to train.
    """
    layers, crossed = model.language.layers, cross_layers(model)
    seen = trained & {"vision", "connector"} and sample.tiles
    if "language" in trained or (seen and model.architecture != "nvlm_x"):
        return layers, layers
    reads = sample.memory_tokens and trained & {"vision", "connector", "cross_attention"}
    if crossed and (reads or (model.cross_attention.ffn and "cross_attention" in trained)):
        return layers - crossed[0] - 1, layers - crossed[0]
    return 0, 0


def _language_flops(model: Model, trained: frozenset[str], sample: SampleWork) -> LanguageWork:
    """One sample through the decoder, cross-attention apart. Attention has no weights: its backward, two products for each of
    the forward's, is due whenever gradients pass."""
    m, own = model.language, "language" in trained
    attending, feeding = _gradient_depth(model, trained, sample)
    forward = m.layers * (1 + own)              # with the weights' gradients
    pairs = sample.tokens * (sample.tokens + 1) // 2
    return LanguageWork(
        self_attention=2 * sample.tokens * _attention_linears(m) * (forward + attending)
        + 4 * m.heads * m.head_dim * pairs * (m.layers + 2 * attending),
        mlp=2 * sample.tokens * _mlp_linears(m) * (forward + feeding),
        output=2 * m.hidden * m.vocab * sample.supervised * (1 + own + (feeding > 0)))


def _cross_flops(model: Model, trained: frozenset[str], sample: SampleWork) -> int:
    """One sample through every gated cross-attention. Keys and values are made of each memory token once a layer; the memory
    needs a gradient if the connector or the encoder is trained, the hidden states if something under them is."""
    x, m, own = model.cross_attention, model.language, "cross_attention" in trained
    query, key = _cross_widths(x, m)
    attending, feeding = _gradient_depth(model, trained, sample)
    passing, memory = feeding > 0, bool(trained & {"vision", "connector"})
    total = 0
    for number, _ in enumerate(cross_layers(model)):
        hidden = passing and (number > 0 or attending == m.layers)
        total += 2 * sample.readers * m.hidden * query * (1 + own + hidden)             # queries
        total += 2 * sample.readers * m.hidden * query * (1 + own + passing)            # output
        total += 2 * sample.memory_tokens * m.hidden * 2 * key * (1 + own + memory)     # keys and values
        total += 4 * sample.pairs * query * (3 if passing else 1)
        behind = hidden or (passing and sample.memory_tokens > 0)
        total += 2 * sample.tokens * m.hidden * x.ffn * (2 * (1 + own + behind) + (1 + own + passing))
    return total


# ----------------------------------------------------------------------------------------------------------------- MFU


def peak_flops(device: str | None) -> float | None:
    """Dense bf16 peak in FLOP/s of a device by its name as the driver gives it; None for a CPU or an unknown device."""
    for name, peak in PEAK_BF16.items():
        if device and name.lower() in device.lower():
            return peak
    return None


def mfu(flops: float, seconds: float, devices: int, peak: float | None) -> float | None:
    """Model FLOPs utilisation (PaLM, appendix B): useful operations over what `devices` could do in `seconds`. None if the peak
    is unknown."""
    if peak is None or seconds <= 0:
        return None
    return flops / (seconds * devices * peak)
