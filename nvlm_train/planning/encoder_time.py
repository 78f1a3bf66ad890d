"""Costs of vision encoder and connector for n tiles on one rank of the first stage: `model/vision.py`, `model/connector.py`.

Both are tensor parallel without slicing the sequence. Numbers moved by element by element kernels are counted from the code, a read
and a write of each tensor that a kernel touches; the comments name the kernels.
"""

from dataclasses import replace

from nvlm_train.config.schema import Connector, Language, Model, Vision
from nvlm_train.config.split import padded_size, tiles_each
from nvlm_train.geometry import TileGeometry
from nvlm_train.planning.cost import NOTHING, Pass, Place

# Backward kernels of a chain of element by element ones read the incoming gradient and what was kept, and write one tensor.
_BACKWARD = 1.7


def encode(v: Vision, place: Place, tiles: int, trains: bool, share: bool = False, again: bool = False) -> Pass:
    """Tiles through the encoder. A frozen one runs forward only. share: tiles are shared out, and their features gathered. again: its
    layers are computed again in the backward pass."""
    if not tiles:
        return Pass()
    if share and place.tensor > 1:
        features = place.gather(padded_size(tiles, place.tensor) * TileGeometry(v.tile_size, v.patch).patches, v.hidden)
        return encode(v, replace(place, tensor=1), tiles_each(tiles, place.tensor), trains) + Pass(features)
    place = replace(place, sequence=False)
    patches = TileGeometry(v.tile_size, v.patch).patches
    tokens = tiles * (patches + v.class_token)
    pixels = 3 * v.tile_size**2 * tiles
    first = place.linear(tiles * patches, 3 * v.patch**2, v.hidden, trains, False)
    first += Pass(place.moves(7 * pixels + 6 * tokens * v.hidden, 8))      # bytes to normalised numbers; class token, positions
    layers = _layer(v, place, tiles, tokens, trains).scaled(v.layers)
    whole = first + (layers.again(layers.forward) if again else layers)
    return whole if trains else Pass(whole.forward)


def _layer(v: Vision, place: Place, tiles: int, tokens: int, trains: bool) -> Pass:
    D, f = v.hidden, v.ffn // place.tensor
    width = padded_size(v.heads, place.tensor) // place.tensor * (D // v.heads)
    total = place.column(tokens, D, 3 * width, trains, trains)
    total += place.attention(4.0 * tokens * tokens / tiles * width)
    total += place.row(tokens, width, D, trains, trains)
    total += place.column(tokens, D, f, trains, trains)
    total += place.row(tokens, f, D, trains, trains)
    numbers = _between_products(v, f, width) if trains or not place.compiled else _compiled_between_products(v, f, width)
    moved = place.moves(tokens * numbers, 14 + 16 * v.qk_norm + 2 * v.layer_scale)
    total += Pass(moved, moved.scaled(_BACKWARD))
    if v.qk_norm and place.tensor > 1:
        total += Pass(place.reduce(2 * tokens, 2), place.reduce(2 * tokens, 2))     # fp32 mean squares of queries and keys
    return total


def _between_products(v: Vision, f: int, width: int) -> int:
    """Numbers that a layer's element-wise operations move, a token: two norms (2), two additions (3), the biases of both output linears (2)
    and LayerScale (2); GELU and its linear's bias (2 each); the projection's bias (2); the heads' outputs side by side (2); norms of q
    and k in fp32: cast, square, sum, cast, scale, cast, weight (19)."""
    return (14 + 4 * v.layer_scale) * v.hidden + 4 * f + (6 * v.qkv_bias + 2 + 38 * v.qk_norm) * width


def _compiled_between_products(v: Vision, f: int, width: int) -> int:
    """The same of a frozen layer (`model.vision_frozen`): two norms (2), two additions with bias and LayerScale (3), GELU with its bias (2);
    the heads' outputs (2); q and k copied out, squared and summed, normed (5). The projection's bias is added in its product."""
    return 10 * v.hidden + 2 * f + (2 + 10 * v.qk_norm) * width


def connect(model: Model, place: Place, tiles: int, trains: bool, below: bool) -> Pass:
    """Pixel shuffle, norm and linears. trains: the connector; below: the encoder is trained too.

    A row without tiles sends one blank through the connector in training."""
    v, c, m = model.vision, model.connector, model.language
    place, tiles = replace(place, sequence=False), max(tiles, 1)
    tokens = tiles * TileGeometry(v.tile_size, v.patch, c.shuffle).tokens
    width, passes = v.hidden * c.shuffle**2, trains or below
    if c.layers == 1:
        total = place.column(tokens, width, m.hidden // place.tensor, trains, below)
        message = place.gather(tokens, m.hidden)
        total += Pass(message, message if passes else NOTHING)
    else:
        inner = (c.hidden or m.ffn) // place.tensor
        total = place.column(tokens, width, inner, trains, below)
        total += place.row(tokens, inner, m.hidden, trains, passes)
        moved = place.moves(2 * tokens * inner, 1)
        total += Pass(moved, moved.scaled(_BACKWARD) if passes else NOTHING)
    moved = place.moves(4 * tokens * width, 2)
    total += Pass(moved, moved.scaled(_BACKWARD) if passes else NOTHING)
    return total + (_resample(c, m, place, tiles, tokens // tiles, passes) if c.resampler_tokens else Pass())


def _resample(c: Connector, m: Language, place: Place, tiles: int, tokens: int, passes: bool) -> Pass:
    """Queries read a tile's tokens and each other, then their feed-forward (`model/resampler.py`)."""
    H, share, queries, keys = m.hidden, m.hidden // place.tensor, c.resampler_tokens * tiles, (tokens + c.resampler_tokens) * tiles
    layer = place.column(queries, H, share, passes, passes) + place.column(keys, H, 2 * share, passes, passes)
    layer += place.attention(4.0 * c.resampler_tokens * keys * share)
    layer += place.row(queries, share, H, passes, passes)
    layer += place.column(queries, H, 4 * share, passes, passes) + place.row(queries, 4 * share, H, passes, passes)
    moved = place.moves(2 * keys * H + 10 * queries * H, 8)
    layer += Pass(moved, moved.scaled(_BACKWARD))
    return (layer if passes else Pass(layer.forward)).scaled(c.resampler_layers)
