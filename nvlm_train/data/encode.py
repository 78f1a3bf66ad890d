"""From a sample to what the model sees: tokens, loss weights and tiles, with a cost that is known beforehand.

    turns --chat--> segments --tokenizer--> pieces --plan, layout--> tokens, loss weights, tile positions, memory
    image bytes --images--> pixels --tiling--> uint8 tiles

`plan` needs only text length and picture sizes, so every rank can compute the same packing without decoding anything.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from nvlm_train.config import schema
from nvlm_train.contracts import EncodedSample, Sample, Turn
from nvlm_train.data import chat
from nvlm_train.data.images import decode, image_size
from nvlm_train.data.layout import PictureLayout, architecture_problems, join_memory, lay_out, reads, shift_starts, tile_places
from nvlm_train.data.tags import tile_tags
from nvlm_train.data.templates import CHATML, Picture, Segment, Special
from nvlm_train.data.tiling import Grid, Scratch, allowed_grids, choose_grid, empty_tiles, tile, tiles_of_grid
from nvlm_train.data.tokenizer import Tokenizer
from nvlm_train.errors import ConfigError, DataError, SampleRefused
from nvlm_train.geometry import FEWER_TILES, geometry_of

SHORT = 128   # characters: roles, instructions and many a question come again and again; tokenising them is mostly the cost of the call


@dataclass(frozen=True)
class Plan:
    """What a sample will cost. grids: (columns, rows) of each picture; tokens: length of the sequence; tiles: all tiles, thumbnails
    and those in memory included."""

    grids: tuple[Grid, ...]
    tokens: int
    tiles: int


@dataclass(frozen=True)
class _Piece:
    """Tokens of one text segment, or (ids None) the place of one picture."""

    ids: list[int] | None
    learned: bool = False
    picture: int = -1


def _count(pieces: Iterable[_Piece]) -> int:
    return sum(len(piece.ids) for piece in pieces if piece.ids is not None)


class Encoder:
    """Encodes samples for one model and one stage's data settings. Immutable after construction, safe in several threads."""

    def __init__(self, model: schema.Model, data: schema.Data, tokenizer: Tokenizer):
        """Raises ConfigError when model, data settings and tokenizer do not fit together."""
        self.model, self.data, self.tokenizer = model, data, tokenizer
        self.geometry = geometry_of(model)
        self.max_tokens = min(data.max_tokens, data.pack_tokens)
        self._rendering = (data.format, data.system_prompt, tokenizer.template)
        self._layout_of = lru_cache(maxsize=None)(self._lay_out)
        self._ids_of_short = lru_cache(maxsize=4096)(tokenizer.encode)
        problems = self.geometry.problems() + architecture_problems(model.architecture)
        if model.architecture == "nvlm_h":
            problems += self._memory_tag_problems()
        if data.format not in chat.FORMATS:
            problems.append(f"data.format is {data.format!r}; it is one of {', '.join(chat.FORMATS)}")
        if data.template != tokenizer.template.name:
            problems.append(f"data.template is {data.template!r}, and tokenizer {tokenizer.name} is one of "
                            f"{tokenizer.template.name}: its model was taught to read that template's turns")
        if tokenizer.vocab_size > model.language.vocab:
            problems.append(f"tokenizer {tokenizer.name} has ids up to {tokenizer.vocab_size - 1:,}, and model.language.vocab is "
                            f"{model.language.vocab:,} rows: raise it to at least {tokenizer.vocab_size:,}")
        if problems:
            raise ConfigError(problems)

    @property
    def fingerprint(self) -> str:
        """Names what the number of text tokens of a sample depends on: tokenizer and template. 16 hex digits."""
        template = self.tokenizer.template
        # ChatML was once the only one, and unnamed: counts made then still serve.
        version = str(chat.VERSION) if template == CHATML else f"{template} {chat.VERSION}"
        parts = [self.tokenizer.fingerprint, self.data.format, repr(self.data.system_prompt), version]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    # Costs

    def text_tokens(self, turns: Sequence[Turn], n_images: int) -> int:
        """Tokens of a sample without its tiles and their tags. Raises SampleRefused as `encode` would for its text."""
        pieces = self._pieces(chat.render(turns, n_images, *self._rendering))
        chat.require_answer(turns)
        return _count(pieces)

    def plan(self, text_tokens: int, image_sizes: Sequence[tuple[int, int]], reserve: int = 0) -> Plan:
        """Grids and exact cost of a sample with this much text and pictures of these (width, height).

        Too long a sample gets fewer tiles a picture first. reserve: tokens to keep free for an answer.
        Raises SampleRefused: too_long (both numbers).
        """
        limits = [self.data.max_tiles, *(limit for limit in FEWER_TILES if limit < self.data.max_tiles)]
        for limit in limits:
            grids = tuple(choose_grid(w, h, limit, self.geometry.tile_size) for w, h in image_sizes)
            tiles = sum(tiles_of_grid(grid, self.data.thumbnail) for grid in grids)
            tokens = text_tokens + sum(len(self._layout_of(grid).tokens) for grid in grids)
            if tokens + reserve <= self.max_tokens and tiles <= self.data.pack_tiles:
                return Plan(grids, tokens, tiles)
        if tiles > self.data.pack_tiles:
            raise SampleRefused("too_long", f"{len(image_sizes)} images make {tiles} tiles at the fewest, data.pack_tiles is "
                                            f"{self.data.pack_tiles}")
        kept = f" and {reserve:,} kept for the answer" if reserve else ""
        raise SampleRefused("too_long", f"{tokens:,} tokens ({text_tokens:,} of text, {tiles} tiles){kept}, the limit is "
                                        f"{self.max_tokens:,} (data.max_tokens, data.pack_tokens)")

    def picture_tokens(self) -> dict[Grid, int]:
        """Tokens that a picture of each allowed grid adds to a sample."""
        return {grid: len(self._layout_of(grid).tokens) for grid in allowed_grids(self.data.max_tiles)}

    def tags_of(self, grid: Grid) -> list[str]:
        """The tag of each tile of a picture of this grid, in tile order (`tags.tile_tags`)."""
        return tile_tags(self.model.tags, grid, self.geometry.tile_size, self.data.thumbnail)

    # Encoding

    def encode(self, sample: Sample, plan: Plan | None = None, out: np.ndarray | None = None,
               scratch: Scratch | None = None, features: torch.Tensor | None = None) -> EncodedSample:
        """Encode a sample for training.

        plan: from `plan`; made from the pictures' headers if not given. out: uint8 [plan.tiles, 3, P, P] to write the tiles to.
        features: [plan.tiles, L, C], cached: the sample needs a plan and no pictures then, and no tiles are made.
        Raises SampleRefused (broken_image, image_too_large, placeholder_mismatch, nothing_supervised, too_long, ...), DataError if
        the text does not have the length that the plan was made for.
        """
        pictures = len(sample.images) if features is None else len(plan.grids)
        pieces = self._pieces(chat.render(sample.turns, pictures, *self._rendering))
        chat.require_answer(sample.turns)
        plan = plan or self.plan(_count(pieces), [image_size(image) for image in sample.images])
        return self._assemble(sample, pieces, plan, out, scratch, features)

    def encode_prompt(self, sample: Sample, reserve: int = 0, scratch: Scratch | None = None) -> EncodedSample:
        """Encode what a model is given before the last assistant turn, for generation; loss weights are all 0.

        reserve: tokens of the sample's budget to keep free for the answer. Raises SampleRefused as `encode`.
        """
        pieces = self._pieces(chat.render_prompt(sample.turns, len(sample.images), *self._rendering))
        plan = self.plan(_count(pieces), [image_size(image) for image in sample.images], reserve)
        return self._assemble(sample, pieces, plan, None, scratch)

    def describe(self, encoded: EncodedSample) -> str:
        """The sample as a person can check it: one line per span, learned or context, pictures as a count of tokens, and which
        tiles of the memory it reads. Tiles count from 1 over the sample, those in the sequence included."""
        is_image = encoded.tokens == self.tokenizer.image_id
        learned = encoded.loss_weights > 0
        notes = _reading_notes(encoded)
        changes = np.flatnonzero((np.diff(is_image) != 0) | (np.diff(learned) != 0) | (notes[1:] != notes[:-1])) + 1
        lines = [f"{encoded.key} ({encoded.source}): {encoded.length} tokens, {int(learned.sum())} learned, {len(encoded.tiles)} tiles"]
        if encoded.memory is not None:
            lines[0] += f", {len(encoded.memory.seen_from_m)} of them in memory"
        for span in np.split(np.arange(encoded.length), changes):
            first = span[0]
            shown = (f"[{len(span)} image tokens]" if is_image[first]
                     else repr(self.tokenizer.decode(encoded.tokens[span], skip_special=False)))
            note = f"  ({notes[first]})" if notes[first] else ""
            lines.append(f"  {'learned' if learned[first] else 'context'}  {shown}{note}")
        lines += [f"  memory   tile {number}, after its tag {self.tokenizer.decode(tag, skip_special=False)!r}"
                  for number, tag in _memory_tags(encoded)]
        return "\n".join(lines)

    # Parts

    def _lay_out(self, grid: Grid) -> PictureLayout:
        """What a picture of this grid adds. Each tag is tokenised alone, so that it does not depend on its neighbours."""
        model = self.model
        tags = [self.tokenizer.encode(tag) for tag in self.tags_of(grid)]
        places = tile_places(model.architecture, model.cross_attention.tag_mask, tags, self.data.thumbnail)
        return lay_out(places, self.geometry.tokens, self.tokenizer.image_id)

    def _memory_tag_problems(self) -> list[str]:
        """Tags that have no room before their tile in the memory; the longest stands for all."""
        rows = (tag[tag >= 0] for grid in allowed_grids(self.data.max_tiles) for tag in self._layout_of(grid).memory.tags_mG)
        longest = max(rows, key=len, default=())
        room = self.model.tags.max_tokens
        if len(longest) <= room:
            return []
        tag = self.tokenizer.decode(longest, skip_special=False)
        problem = (f"the tile tag {tag!r} is {len(longest)} tokens of tokenizer {self.tokenizer.name}, and model.tags.max_tokens keeps "
                   f"room for {room} before each tile of the memory: raise it to {len(longest)}")
        return [problem]

    def _pieces(self, segments: Iterable[Segment]) -> list[_Piece]:
        pieces = []
        for segment in segments:
            if isinstance(segment, Picture):
                pieces.append(_Piece(None, picture=segment.index))
            elif isinstance(segment, Special):
                pieces.append(_Piece([self.tokenizer.special(segment.token)], segment.learned))
            else:
                ids_of = self._ids_of_short if len(segment.text) <= SHORT else self.tokenizer.encode
                pieces.append(_Piece(ids_of(segment.text), segment.learned))
        return pieces

    def _assemble(self, sample: Sample, pieces: list[_Piece], plan: Plan, out: np.ndarray | None,
                  scratch: Scratch | None, features: torch.Tensor | None = None) -> EncodedSample:
        layouts = [self._layout_of(grid) for grid in plan.grids]
        tokens = np.empty(plan.tokens, dtype=np.int64)
        weights = np.zeros(plan.tokens, dtype=np.float32)
        expected = plan.tokens - sum(len(layout.tokens) for layout in layouts)
        if _count(pieces) != expected:
            raise DataError(f"{sample.key}: its text is {_count(pieces)} tokens, the plan says {expected}. The token counts beside the "
                            "shards are of another tokenizer or template: delete them (*.tokens-*.json)")
        at, places = 0, []
        for piece in pieces:
            ids = piece.ids
            if ids is None:
                ids = layouts[piece.picture].tokens
                places.append(at)
            tokens[at:at + len(ids)] = ids
            weights[at:at + len(ids)] = 1.0 if piece.learned else 0.0
            at += len(ids)
        starts = [shift_starts(layout.tile_starts, place) for layout, place in zip(layouts, places, strict=True)]
        size = self.geometry.tile_size
        tiles = self._tiles(sample, plan, out, scratch) if features is None else np.empty((0, 3, size, size), dtype=np.uint8)
        return EncodedSample(sample.key, sample.source, tokens, weights, tiles,
                             np.concatenate([np.empty(0, dtype=np.int64), *starts]),
                             join_memory([layout.memory for layout in layouts], places), features)

    def _tiles(self, sample: Sample, plan: Plan, out: np.ndarray | None, scratch: Scratch | None) -> np.ndarray:
        size = self.geometry.tile_size
        if out is None:
            out = empty_tiles(plan.tiles, size)
        scratch = scratch or Scratch()
        at = 0
        for image, grid in zip(sample.images, plan.grids, strict=True):
            n = tiles_of_grid(grid, self.data.thumbnail)
            tile(decode(image, scratch), grid, size, self.data.thumbnail, out=out[at:at + n], scratch=scratch)
            at += n
        return out


def _reading_notes(encoded: EncodedSample) -> np.ndarray:
    """For each token the memory tiles it reads, in words; empty where it reads none."""
    notes = np.full(encoded.length, "", dtype=object)
    if encoded.memory is None:
        return notes
    numbers = np.flatnonzero(encoded.tile_starts < 0) + 1
    for start, end, first, last in reads(encoded.memory, encoded.length).tolist():
        notes[start:end] = f"reads {_ranges(numbers[first:last])}"
    for number, (start, end) in zip(numbers, encoded.memory.bound_m2.tolist(), strict=True):
        notes[start:end] = f"bound to tile {number}"
    return notes


def _ranges(numbers: np.ndarray) -> str:
    """Ascending numbers as "tiles 1-2, 4"."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ("tile " if len(numbers) == 1 else "tiles ") + ", ".join(
        str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _memory_tags(encoded: EncodedSample) -> list[tuple[int, np.ndarray]]:
    """Number and tag of each memory tile that has its tag beside it."""
    if encoded.memory is None:
        return []
    numbered = zip(np.flatnonzero(encoded.tile_starts < 0) + 1, encoded.memory.tags_mG, strict=True)
    return [(int(number), tag[tag >= 0]) for number, tag in numbered if (tag >= 0).any()]
