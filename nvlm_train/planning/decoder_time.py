"""Costs of the language model's parts for one row on one rank: `model/decoder.py`, `model/attention.py`, `model/cross_attention.py`,
`model/loss.py`, over Megatron's layer.

Numbers moved by element by element kernels are counted from the code, a read and a write of each tensor that a kernel touches, as the
run's kernel plan has them (`Place.kernels`). Calls are those of separate operations: the host's share of a compiled one was not measured.
"""

from dataclasses import dataclass

from nvlm_train.config.fp8_layers import FC1, FC2, PROJ, QKV, by_torch
from nvlm_train.config.recompute import recomputed
from nvlm_train.config.schema import Model
from nvlm_train.config.split import padded_size
from nvlm_train.kernels import APEX, PRODUCT, TE
from nvlm_train.planning.cost import NOTHING, PLAIN, Cost, Pass, Place, Products
from nvlm_train.planning.sizes import FP32

# Numbers read and written, forward and backward, as separate operations and (True) as single kernels: of a token and a number of the
# feed-forward's width, of queries and keys, of the vocabulary. docs/kernels.md#compiled-parts
SWIGLU = {False: (7, 13), True: (3, 5)}
ROTARY = {False: (12, 14), True: (2, 2)}
CROSS_ENTROPY = {False: (10, 27), True: (2, 2)}


@dataclass(frozen=True)
class Row:
    """What one row holds.

    tokens: T, padding included; segments: lengths of the samples, and of the padding, which attends to itself; tiles: to be
    encoded; supervised: tokens with a loss; memory: tokens that cross-attention's keys are made of; readers, pairs: tokens that
    read any, and (reader, memory token) pairs. whole, pieces: of a rank's part of a row that is shared out (`shared.rank_row`), the
    whole row's tokens, and (queries, keys) of each of its pieces.
    """

    tokens: int
    segments: tuple[int, ...]
    tiles: int = 0
    supervised: int = 0
    memory: int = 0
    readers: int = 0
    pairs: int = 0
    whole: int = 0
    pieces: tuple[tuple[int, int], ...] = ()

    @property
    def attended(self) -> int:
        """Tokens whose keys and values self-attention reads."""
        return sum(keys for _, keys in self.pieces) if self.pieces else self.tokens

    def causal_pairs(self, block: int) -> int:
        """(query, key) pairs that a kernel works on which takes blocks of so many tokens, those on the diagonal whole."""
        counts = ((-(-queries // block), -(-keys // block)) for queries, keys in self.pieces or ((n, n) for n in self.segments))
        return sum(queries * (2 * keys - queries + 1) // 2 for queries, keys in counts) * block * block


@dataclass(frozen=True)
class Gradients:
    """What of a layer is trained, and whether its input needs a gradient."""

    language: bool
    cross: bool
    below: bool
    memory: bool = False    # the image memory needs one

    @property
    def passes(self) -> bool:
        return self.language or self.below


def decoder_layer(model: Model, place: Place, row: Row, needs: Gradients, reads: bool) -> Pass:
    """Self-attention, cross-attention where the layer `reads`, feed-forward; recomputation as `model.recompute` says."""
    whole = self_attention(model, place, row, needs)
    if reads:
        whole += cross_attention(model, place, row, needs)
    fed = feed_forward(place, row, model.language.hidden, model.language.ffn, needs.language, needs.below or reads, place.compiled,
                       products(model, place, FC1), products(model, place, FC2))
    whole += fed
    if not (needs.passes or reads):
        return Pass(whole.forward)
    if model.recompute == "full":
        return whole.again(whole.forward)
    return whole.again(fed.forward) if "mlp" in recomputed(model) else whole


def products(model: Model, place: Place, name: str = "") -> Products:
    """Of a linear of the decoder's. name: of those that torch may compute in fp8 and Transformer Engine takes (`config.fp8_layers`)."""
    fp8 = name in by_torch(model, place.tensor)
    return Products(not fp8 and place.kernels.wgrad in ((PRODUCT, APEX, TE) if name else (PRODUCT, APEX)), fp8)


def self_attention(model: Model, place: Place, row: Row, needs: Gradients) -> Pass:
    m, T, H, t = model.language, row.tokens, model.language.hidden, place.tensor
    q, k = m.heads * m.head_dim // t, m.kv_heads * m.head_dim // t
    core = _core(model, place, row, k)
    total = place.column(T, H, q + 2 * k, needs.language, needs.below, products(model, place, QKV))
    total += place.row(T, q, H, needs.language, needs.passes, products(model, place, PROJ))
    # Norm (2) and addition (3) on this rank's slice; bias (2); heads cut out (2); rotary positions of q and k.
    turned, back = ROTARY[place.kernels.rope != "megatron"]
    forward = 5 * T // place.slices * H + T * ((q + 2 * k) * (2 * m.qkv_bias) + (2 + turned) * (q + k))
    backward = 8 * T // place.slices * H + T * ((q + 2 * k) * (2 + m.qkv_bias) + back * (q + k))
    total += Pass(place.moves(forward, 24), place.moves(backward, 32) if needs.passes else NOTHING)
    if not needs.passes:
        return total + Pass(core.forward)
    return total + (core.again(core.forward) if "attention" in recomputed(model) else core)


def _core(model: Model, place: Place, row: Row, k: int) -> Pass:
    """Flash attention for grouped queries, as memory has it too: a torch whose kernel lacks that form makes copies. Keys and values of a row
    that is shared out are gathered first, and picked out piece by piece; gradients go back in fp32 (`context_attention`)."""
    m = model.language
    done = place.attention(4.0 * m.heads * m.head_dim // place.tensor * row.causal_pairs(place.machine.block))
    if row.pieces:
        picked = place.moves(4 * k * (row.tokens + row.attended), 2)
        done += Pass(place.exchange(2 * k * row.whole, place.machine.number_bytes) + picked,
                     place.exchange(2 * k * row.whole, FP32) + picked + place.moves(6 * k * row.whole, 2))
    return done


def feed_forward(place: Place, row: Row, H: int, width: int, own: bool, below: bool, compiled: bool, up: Products, down: Products) -> Pass:
    """Norm, gate and up as one linear, SwiGLU (`compiled`), down, addition."""
    T, f = row.tokens, width // place.tensor
    passes = own or below
    total = place.column(T, H, 2 * f, own, below, up) + place.row(T, f, H, own, passes, down)
    # Norm (2), addition (3). SwiGLU in pieces: SiLU (2), the up half plus zero (2), their product (3); backward both factors' gradients (6),
    # SiLU's (3), the halves put together (4).
    forward, backward = SWIGLU[compiled]
    moved = Pass(place.moves(5 * T // place.slices * H + forward * T * f, 7), place.moves(8 * T // place.slices * H + backward * T * f, 12))
    return total + (moved if passes else Pass(moved.forward))


def cross_attention(model: Model, place: Place, row: Row, needs: Gradients) -> Pass:
    """Gated cross-attention, and its own feed-forward if it has one. Queries are made of every token of the row, keys and values
    of every token of its memory; a row without pictures skips both."""
    x, m, T, H, t = model.cross_attention, model.language, row.tokens, model.language.hidden, place.tensor
    own, passes, how = needs.cross, needs.passes or needs.cross or needs.memory, products(model, place)
    sliced = T // place.slices * H
    total = Pass(place.moves(7 * sliced, 4), place.moves(12 * sliced, 8) if passes else NOTHING)     # norm, gate, addition
    if row.memory:
        q, k = (x.heads or m.heads) * m.head_dim // t, (x.kv_heads or m.kv_heads) * m.head_dim // t
        total += place.column(T, H, q, own, needs.passes, how)
        total += place.column(row.memory, H, 2 * k, own, needs.memory, how)
        total += place.row(T, q, H, own, passes, how)
        read = place.attention(4.0 * q * row.pairs)
        keys = row.pairs / max(row.readers, 1)
        moved = place.moves(2 * row.readers * q + 2 * T * q + 4 * keys * k, 7)      # readers out, keys and values too, readers back
        done = Pass(read.forward + moved, read.backward + moved.scaled(1.5) if passes else NOTHING)
        total += done.again(done.forward) if passes and "cross_attention" in recomputed(model) else done
    if x.ffn:
        total += feed_forward(place, row, H, x.ffn, own, passes, False, how, how)
    return total


def embed(model: Model, place: Place, row: Row, trains: bool, passes: bool) -> Pass:
    """Tokens of the row and their tiles put among them, summed over the group, then sliced."""
    m, H = model.language, model.language.hidden
    forward = place.reduce(row.tokens, H) + place.moves(6 * row.tokens * H, 8)
    backward = NOTHING
    if passes or trains:
        backward += place.gather(row.tokens, H) if place.sequence else NOTHING
        backward += place.moves(6 * row.tokens * H, 6)
    if trains:      # a whole table of gradients, mostly zeros, is added to the sum: 2 numbers of it are made, 5 moved in adding
        backward += place.moves(7 * m.vocab // place.tensor * H, 4)
    return Pass(forward, backward)


def answer(model: Model, place: Place, row: Row, trains: bool, passes: bool) -> Pass:
    """Final norm, logits of the supervised tokens, cross-entropy."""
    H, K, V = model.language.hidden, max(row.supervised, 1), padded_size(model.language.vocab, place.tensor) // place.tensor
    total = place.linear(K, H, V, trains, passes, PLAIN if model.language.tie_embeddings else products(model, place))
    message = place.reduce(K, H) if passes else NOTHING
    total += Pass(NOTHING, message)
    gathered = place.gather(row.tokens, H) if place.sequence else NOTHING
    # Logits are read for their largest and for the sum of exponentials; their gradient is written over them. In pieces, in fp32 chunks.
    forward, backward = CROSS_ENTROPY[place.compiled]
    total += Pass(gathered + place.moves(2 * row.tokens // place.slices * H + forward * K * V, 14), NOTHING)
    total += Pass(small_sums(place, K))
    if passes or trains:
        total += Pass(NOTHING, place.moves(5 * row.tokens // place.slices * H + 3 * row.tokens * H + backward * K * V, 10))
    return total


def small_sums(place: Place, supervised: int) -> Cost:
    """Vocabulary-parallel cross-entropy's one message: three fp32 numbers a supervised token of every rank."""
    return place.gather(6 * supervised * place.tensor, 1)
