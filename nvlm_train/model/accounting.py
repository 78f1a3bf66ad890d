"""What a model costs: parameters per component, useful floating-point operations of a step, datasheet peaks of devices.

Plain arithmetic over the configuration, no tensors. An operation is counted if the result needs it, whatever the machine did:
real tokens only (no padding), causal attention over each sample's own length, logits of supervised tokens only, backward only
where a gradient is used, recomputation never. A multiply-add is two operations. Norms, activations and softmax are left out
(well below one percent), as in every published MFU.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from nvlm_train.config.schema import Connector, Language, Model, Train, Vision
from nvlm_train.geometry import TileGeometry

COMPONENTS = ("vision", "connector", "language")

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
    """One number per component."""

    vision: float = 0
    connector: float = 0
    language: float = 0

    @property
    def total(self) -> float:
        return self.vision + self.connector + self.language

    def __add__(self, other: "Parts") -> "Parts":
        return Parts(self.vision + other.vision, self.connector + other.connector, self.language + other.language)

    def scaled(self, factor: float) -> "Parts":
        return Parts(self.vision * factor, self.connector * factor, self.language * factor)


class SampleWork(NamedTuple):
    """What a sample asks of the model: its tokens (visual ones included), its tiles, its supervised tokens."""

    tokens: int
    tiles: int
    supervised: int


# ---------------------------------------------------------------------------------------------------------- parameters


def parameters(model: Model) -> Parts:
    """Parameters of the whole model, exact, dummy heads of tensor parallelism not counted."""
    vision, language = model.vision, model.language
    connector = _connector_parameters(vision, model.connector, language)
    return Parts(_vision_parameters(vision), connector, _language_parameters(language))


def _vision_parameters(v: Vision) -> int:
    D = v.hidden
    norm = D if v.norm == "rms" else 2 * D
    attention = 4 * D * D + D + (3 * D if v.qkv_bias else 0) + (2 * D if v.qk_norm else 0)
    mlp = 2 * D * v.ffn + v.ffn + D
    layer = attention + mlp + 2 * norm + (2 * D if v.layer_scale else 0)
    positions = TileGeometry(v.tile_size, v.patch).patches + 1            # one for the class token
    embedding = 3 * v.patch**2 * D + D + positions * D + D                # patch convolution, positions, class token
    return embedding + v.layers * layer + (norm if v.final_norm else 0)


def _connector_parameters(v: Vision, c: Connector, m: Language) -> int:
    return 2 * _connector_input(v, c) + sum(wide * high for wide, high in _connector_linears(v, c, m))


def _connector_input(v: Vision, c: Connector) -> int:
    return v.hidden * c.shuffle**2


def _connector_linears(v: Vision, c: Connector, m: Language) -> list[tuple[int, int]]:
    """(in, out) of each linear, first to last (paper section 4.5: the inner width is the language model's ffn)."""
    if c.layers == 1:
        return [(_connector_input(v, c), m.hidden)]
    inner = c.hidden or m.ffn
    return [(_connector_input(v, c), inner), (inner, m.hidden)]


def _language_parameters(m: Language) -> int:
    qkv = (m.heads + 2 * m.kv_heads) * m.head_dim
    layer = _language_linears(m) + 2 * m.hidden + (qkv if m.qkv_bias else 0)
    tables = m.vocab * m.hidden * (1 if m.tie_embeddings else 2)
    return tables + m.layers * layer + m.hidden


def _language_linears(m: Language) -> int:
    """Weights of one layer's matrices: query, key, value and output projections, gate, up and down."""
    return m.hidden * (2 * m.heads + 2 * m.kv_heads) * m.head_dim + 3 * m.hidden * m.ffn


# --------------------------------------------------------------------------------------------------------------- FLOPs


def trained_components(train: Train) -> frozenset[str]:
    """The components in which `train.trainable` may train something: named whole, in part, or reached by a wildcard."""
    return frozenset(c for c in COMPONENTS for pattern in train.trainable if _may_reach(pattern, c))


def _may_reach(pattern: str, component: str) -> bool:
    before = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    wild = before != pattern
    return before == component or before.startswith(f"{component}.") or (wild and component.startswith(before))


def useful_flops(model: Model, trained: Iterable[str], samples: Iterable[SampleWork]) -> Parts:
    """Operations of one optimizer step over `samples` (forward, and backward where a gradient is needed).

    trained: components with trainable parameters. Gradients flow down to the lowest of them: a frozen language model costs
    forward and input gradients for samples with images, forward alone for text.
    """
    trained = frozenset(trained)
    total = Parts()
    for sample in samples:
        total += Parts(
            _tile_flops(model.vision) * sample.tiles * (3 if "vision" in trained else 1),
            _connector_flops(model, trained) * sample.tiles,
            _language_flops(model.language, trained, sample),
        )
    return total


def _tile_flops(v: Vision) -> int:
    """Forward of one tile through the encoder: its patches and the class token, attention in both directions."""
    D, patches = v.hidden, TileGeometry(v.tile_size, v.patch).patches
    n = patches + 1
    layer = n * 2 * (4 * D * D + 2 * D * v.ffn) + 4 * n * n * D
    return v.layers * layer + patches * 2 * 3 * v.patch**2 * D


def _connector_flops(model: Model, trained: frozenset[str]) -> int:
    """One tile's visual tokens, forward and backward. The lowest linear needs an input gradient only under a trained encoder."""
    tokens = TileGeometry(model.vision.tile_size, model.vision.patch, model.connector.shuffle).tokens
    below = "vision" in trained
    total = 0
    for weights in (wide * high for wide, high in _connector_linears(model.vision, model.connector, model.language)):
        weight_gradient = "connector" in trained
        total += tokens * 2 * weights * (1 + weight_gradient + below)
        below = below or weight_gradient
    return total


def _language_flops(m: Language, trained: frozenset[str], sample: SampleWork) -> int:
    """One sample through the decoder. Attention has no weights: its backward, two products for each of the forward's, is due
    whenever gradients pass."""
    own = "language" in trained
    passing = own or (sample.tiles > 0 and bool(trained))
    linears = 2 * m.layers * _language_linears(m) * sample.tokens + 2 * m.hidden * m.vocab * sample.supervised
    pairs = sample.tokens * (sample.tokens + 1) // 2
    attention = 4 * m.layers * m.heads * m.head_dim * pairs
    return linears * (1 + passing + own) + attention * (3 if passing else 1)


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
