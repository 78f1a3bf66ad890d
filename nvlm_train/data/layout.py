"""Where a picture's tiles and tags stand, in the token sequence or in cross-attention memory, and which tokens read that memory.

On the data side the three models differ here and nowhere else (paper sections 4.2, 4.3 and 4.4):

              in the sequence                                                    in memory
    nvlm_d    [tag 1][tile 1] ... [tag k][tile k][thumbnail's tag][thumbnail]    -
    nvlm_x    [tag 1] ... [tag k][thumbnail's tag]                               [tile 1] ... [tile k][thumbnail]
    nvlm_h    [thumbnail's tag][thumbnail]                                       [tag 1][tile 1] ... [tag k][tile k]

Text reads every memory tile of the pictures before it. What the paper leaves open (several pictures, the thumbnail's tag, what text
reads) is told in docs/choices.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvlm_train.contracts import TileMemory
from nvlm_train.errors import ConfigError

ARCHITECTURES = ("nvlm_d", "nvlm_x", "nvlm_h")


@dataclass(frozen=True)
class TilePlace:
    """Where one tile and its tag go.

    tag: token ids. tag_in_sequence: else it stands in memory, before the tile. in_sequence: the tile's visual tokens do; else the
    tile is memory. bound: the tag's tokens read this tile and no other.
    """

    tag: tuple[int, ...]
    tag_in_sequence: bool
    in_sequence: bool
    bound: bool = False


@dataclass(frozen=True)
class PictureLayout:
    """What one picture adds to a sample. Every position counts from the picture's first token; treat the arrays as read-only.

    tokens: int64 [l], tags and visual tokens in the sequence (l may be 0). tile_starts: int64 [n], -1 for a memory tile.
    memory: of the picture's m memory tiles; m may be 0.
    """

    tokens: np.ndarray
    tile_starts: np.ndarray
    memory: TileMemory


def architecture_problems(architecture: str) -> list[str]:
    """Why pictures cannot be laid out for this `model.architecture`; empty when they can."""
    if architecture in ARCHITECTURES:
        return []
    return [f"model.architecture is {architecture!r}; pictures can be laid out for {', '.join(ARCHITECTURES)}"]


def tile_places(architecture: str, tag_mask: bool, tags: Sequence[Sequence[int]], thumbnail: bool) -> list[TilePlace]:
    """The place of each tile of one picture, in tile order.

    tags: token ids of each tile's tag, a thumbnail's last; empty ones for no tags. thumbnail: whether a picture of several tiles
    ends with one. tag_mask: whether a tag of nvlm_x reads its own tile only. Raises ConfigError for an unknown architecture.
    """
    if problems := architecture_problems(architecture):
        raise ConfigError(problems)
    if architecture == "nvlm_d":
        return [TilePlace(tuple(tag), True, True) for tag in tags]
    if architecture == "nvlm_x":
        return [TilePlace(tuple(tag), True, False, bound=tag_mask and len(tag) > 0) for tag in tags]
    # A picture of one tile is its own thumbnail: nothing of it is left for cross-attention.
    regular = len(tags) - 1 if thumbnail or len(tags) == 1 else len(tags)
    return [TilePlace(tuple(tag), number >= regular, number >= regular) for number, tag in enumerate(tags)]


def lay_out(places: Sequence[TilePlace], tile_tokens: int, image_id: int) -> PictureLayout:
    """Lay out one picture. tile_tokens: visual tokens of a tile. image_id: what stands for each of them in the sequence.

    Where tags are bound, no token reads the whole picture before its last tag has ended; else every token from the picture's first
    on does, its own tags and thumbnail included.
    """
    tokens: list[int] = []
    starts, bound, in_memory = [], [], []
    for place in places:
        before = len(tokens)
        if place.tag_in_sequence:
            tokens += place.tag
        if place.in_sequence:
            starts.append(len(tokens))
            tokens += [image_id] * tile_tokens
        else:
            starts.append(-1)
            bound.append((before, len(tokens)) if place.bound else (0, 0))
            in_memory.append(() if place.tag_in_sequence else place.tag)
    seen_from = len(tokens) if any(place.bound for place in places) else 0
    memory = TileMemory(np.full(len(bound), seen_from, dtype=np.int64), np.array(bound, dtype=np.int64).reshape(-1, 2),
                        stack_tags([np.array([tag], dtype=np.int64) for tag in in_memory]))
    return PictureLayout(np.array(tokens, dtype=np.int64), np.array(starts, dtype=np.int64), memory)


def stack_tags(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Tags of memory tiles one below the other: int64 [m_i, G_i] arrays to [sum of m_i, longest G_i], padded with -1."""
    stacked = np.full((sum(len(part) for part in parts), max((part.shape[1] for part in parts), default=0)), -1, dtype=np.int64)
    at = 0
    for part in parts:
        stacked[at:at + len(part), :part.shape[1]] = part
        at += len(part)
    return stacked


def shift_starts(tile_starts: np.ndarray, by: int) -> np.ndarray:
    """`tile_starts` in a longer sequence that has `by` tokens before; the -1 of memory tiles stays."""
    return np.where(tile_starts < 0, tile_starts, tile_starts + by)


def join_memory(memories: Sequence[TileMemory], starts: Sequence[int]) -> TileMemory | None:
    """The memory of a sample whose pictures begin at `starts`, ascending. None if none of its tiles is memory."""
    if not any(len(memory.seen_from_m) for memory in memories):
        return None
    return TileMemory(np.concatenate([memory.seen_from_m + at for memory, at in zip(memories, starts, strict=True)]),
                      np.concatenate([memory.bound_m2 + at for memory, at in zip(memories, starts, strict=True)]),
                      stack_tags([memory.tags_mG for memory in memories]))


def reads(memory: TileMemory, length: int) -> np.ndarray:
    """Who reads what in a sample of `length` tokens: int64 [s, 4], tokens [start, end) read memory tiles [first, last).

    Token ranges ascend and do not overlap, neighbours that read the same are one. `memory.seen_from_m` and the bound ranges must
    ascend, as the pictures and tags of a sample do, so that what a token sees is always the first so many tiles.
    """
    tiles = np.flatnonzero(memory.bound_m2[:, 0] < memory.bound_m2[:, 1])
    bound = memory.bound_m2[tiles]
    start = np.unique(np.concatenate([memory.seen_from_m, bound.ravel()]))
    start = start[start < length]
    first = np.zeros(len(start), dtype=np.int64)
    last = np.searchsorted(memory.seen_from_m, start, side="right")
    if len(tiles):
        near = np.searchsorted(bound[:, 0], start, side="right") - 1   # the last tag that begins here or before; -1: none does
        inside = (near >= 0) & (start < bound[near, 1])
        first[inside], last[inside] = tiles[near[inside]], tiles[near[inside]] + 1
    table = np.stack([start, np.append(start, length)[1:], first, last], axis=1)
    table = table[first < last]
    new = np.ones(len(table), dtype=bool)
    new[1:] = (table[1:, 0] != table[:-1, 1]) | (table[1:, 2:] != table[:-1, 2:]).any(axis=1)
    merged = table[new]
    merged[:, 1] = table[np.roll(new, -1), 1]   # a range ends where the one before the next new one does
    return merged
