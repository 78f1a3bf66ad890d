"""What attention keeps of running sequences, so that a new token costs one token's work: a KV cache.

A `Cache` holds this rank's layers and heads of up to `slots` sequences. A row of whole prompts fills slots (`Prompts`); a row of one
new token each reads and extends them (`NewTokens`). Either travels to the layers in the carrier that brings a row's packing
(`attention.packing`). New tokens are those of the slots 0, 1, 2, … in order, so that all of them are one attention call
over a view of the cache: whoever runs the sequences moves the last slot into one that has become free (`Cache.move`).

Memory: 2 x layers x slots x room x heads x head_dim numbers, where room is the longest sequence's, answer included.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nvlm_train.config.split import padded_size

GRAIN = 64      # tokens: room grows by as much at least


class KeyValues:
    """Keys and values of every layer of one kind, [slots, kv_heads, room, d] each; made, and made larger, when they are written."""

    def __init__(self, slots: int):
        self.slots = slots
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._layers[layer]

    def fill(self, layer: int, slot: int, keys: Tensor, values: Tensor, room: int) -> None:
        """A slot's first tokens: keys, values [n, kv_heads, d]. room: tokens that a slot must hold in the end."""
        held = self._layers[layer] = tuple(self._with_room(layer, at, new, room) for at, new in enumerate((keys, values)))
        for store, new in zip(held, (keys, values), strict=True):
            store[slot, :, :len(new)] = new.transpose(0, 1)

    def _with_room(self, layer: int, which: int, new: Tensor, room: int) -> Tensor:
        old = self._layers[layer][which] if layer in self._layers else None
        if old is not None and old.shape[2] >= room:
            return old
        # Zeros, not whatever lay there: a masked place still takes part with weight 0, and 0 times infinity is no number.
        store = new.new_zeros(self.slots, new.shape[1], padded_size(room, GRAIN), new.shape[2])
        if old is not None:
            store[:, :, :old.shape[2]] = old
        return store

    def move(self, source: int, target: int) -> None:
        for held in self._layers.values():
            for store in held:
                store[target] = store[source]


class Cache:
    """Keys and values of running sequences: of the tokens themselves, and of the image memory that they read (NVLM-X, NVLM-H)."""

    def __init__(self, slots: int):
        self.text, self.memory = KeyValues(slots), KeyValues(slots)
        self.memory_tokens = [0] * slots

    def move(self, source: int, target: int) -> None:
        """The sequence of slot `source` goes on in slot `target`."""
        if source != target:
            self.text.move(source, target)
            self.memory.move(source, target)
            self.memory_tokens[target] = self.memory_tokens[source]


@dataclass(frozen=True)
class Prompts:
    """A row of whole prompts, to be kept: its first segments go to `slots`.

    room: tokens that each slot must hold in the end, answers included. tiles: of each prompt, the memory tiles [first, last) of
    the row that its next token will read.
    """

    cache: Cache
    slots: Sequence[int]
    room: int
    tiles: Sequence[tuple[int, int]]
    decoding = False

    def placed(self, tile_edges: Sequence[int], device: torch.device) -> "PlacedPrompts":
        """The same as the layers need it. tile_edges: the memory tokens where each tile begins, and where the last ends."""
        spans = [(tile_edges[first], tile_edges[last]) for first, last in self.tiles]
        for slot, (first, last) in zip(self.slots, spans, strict=True):
            self.cache.memory_tokens[slot] = last - first
        return PlacedPrompts(self, spans)


@dataclass(frozen=True)
class PlacedPrompts:
    """`Prompts` on their way through the layers. memory: the memory tokens [first, last) of each prompt."""

    row: Prompts
    memory: Sequence[tuple[int, int]]
    decoding = False

    def keep(self, layer: int, keys: Tensor, values: Tensor, edges: Sequence[int]) -> None:
        """A layer's keys and values [T, kv_heads, d] of the row; edges: of its segments."""
        for number, slot in enumerate(self.row.slots):
            part = slice(edges[number], edges[number + 1])
            self.row.cache.text.fill(layer, slot, keys[part], values[part], self.row.room)

    def keep_memory(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """A layer's keys and values [M, kv_heads, d] of the row's memory."""
        room = max(last - first for first, last in self.memory)
        for slot, (first, last) in zip(self.row.slots, self.memory, strict=True):
            if first < last:
                self.row.cache.memory.fill(layer, slot, keys[first:last], values[first:last], room)


@dataclass(frozen=True)
class NewTokens:
    """A row of one new token each of the sequences in slots 0 to n - 1; behind them may be padding. lengths: tokens that the slots
    hold before."""

    cache: Cache
    lengths: Sequence[int]
    decoding = True

    def placed(self, tile_edges: Sequence[int], device: torch.device) -> "PlacedTokens":
        """The same as the layers need it."""
        return PlacedTokens(self.cache, self.lengths, device)


class PlacedTokens:
    """`NewTokens` on their way through the layers; for the row's padding attention gives 0."""

    decoding = True

    def __init__(self, cache: Cache, lengths: Sequence[int], device: torch.device):
        self.cache, self.count = cache, len(lengths)
        self.longest = max(lengths, default=0) + 1
        self.lengths = torch.tensor(lengths, dtype=torch.long, device=device)
        self.slots = torch.arange(self.count, device=device)
        self.visible = _first(self.lengths + 1, self.longest)
        memory = cache.memory_tokens[:self.count]
        self.longest_memory = max(memory, default=0)
        self.memory_visible = _first(torch.tensor(memory, dtype=torch.long, device=device), self.longest_memory)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """Take in a layer's keys and values of the new tokens, [T, kv_heads, d], and let q [T, heads, d] read all there are."""
        if not self.count:
            return torch.zeros_like(q)
        keys, values = self.cache.text[layer]
        keys[self.slots, :, self.lengths] = k[:self.count]
        values[self.slots, :, self.lengths] = v[:self.count]
        return self._read(q, keys, values, self.longest, self.visible, scale)

    def attend_memory(self, layer: int, q: Tensor) -> Tensor:
        """q [T, heads, d] read their slots' image memory; 0 where there is none."""
        if not self.longest_memory:
            return torch.zeros_like(q)
        keys, values = self.cache.memory[layer]
        out = self._read(q, keys, values, self.longest_memory, self.memory_visible, None)
        return torch.where(_padded(self.memory_visible.any(-1), len(q))[:, None, None], out, 0.0)

    def _read(self, q: Tensor, keys: Tensor, values: Tensor, longest: int, visible: Tensor, scale: float | None) -> Tensor:
        """The query heads of a group are as many queries of its one key head: nothing is repeated."""
        n, kv_heads = self.count, keys.shape[1]
        queries = q[:n].unflatten(1, (kv_heads, -1))
        out = F.scaled_dot_product_attention(queries, keys[:n, :, :longest], values[:n, :, :longest],
                                             attn_mask=visible[:, None, None], scale=scale)
        return _padded(out.flatten(1, 2), len(q))


CacheRow = Prompts | NewTokens


def _first(counts: Tensor, width: int) -> Tensor:
    """bool [n, width], True in the first `counts` places of each row."""
    return torch.arange(width, device=counts.device) < counts[:, None]


def _padded(x: Tensor, rows: int) -> Tensor:
    return torch.cat((x, x.new_zeros(rows - len(x), *x.shape[1:]))) if len(x) < rows else x
