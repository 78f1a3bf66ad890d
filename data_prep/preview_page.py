"""preview.html: samples of a dataset as the model will see them, on one self-contained page made to be looked at.

Each sample shows its pictures under the grid that cuts them, every tile's tag in its place, and its exact token sequence: a box a
token, those that are learned in colour, the tokens of a tile as one box. Above stand figures of the whole dataset.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.thumbnails import thumbnail
from nvlm_train.contracts import EncodedSample, Sample
from nvlm_train.data.encode import Encoder, Plan
from nvlm_train.data.images import image_size
from nvlm_train.data.permutation import key_of, permuted
from nvlm_train.data.records import read_record
from nvlm_train.data.shards import ShardFolder
from nvlm_train.data.tiling import tiles_of_grid
from nvlm_train.errors import SampleRefused
from nvlm_train.training.logs import write_atomically
from nvlm_train.training.report.templates import templates

SURVEYED = 2000     # samples that the figures are taken from, chosen at random: every n-th may all be of one kind
SHOWN_PX = 420      # longest side of a picture on the page
BARS = 12           # of a histogram


@dataclass(frozen=True)
class Picture:
    """A picture with its grid. tags: of the regular tiles, row by row; thumbnail: the tag of the whole, or None if it has one tile."""

    source: str
    width: int
    height: int
    columns: int
    rows: int
    tags: Sequence[str]
    thumbnail: str | None


@dataclass(frozen=True)
class Token:
    """One box of a sequence. count: 1, or the visual tokens of a tile; kind: learned, context or visual."""

    text: str
    kind: str
    count: int = 1


@dataclass(frozen=True)
class Shown:
    """One sample on the page. refused: why it will be left out, with neither pictures nor tokens then; memory: tiles beside the
    sequence, which cross-attention reads."""

    key: str
    pictures: Sequence[Picture]
    tokens: Sequence[Token]
    length: int = 0
    learned: int = 0
    tiles: int = 0
    memory: int = 0
    refused: str = ""


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram. share: of the largest, 0 to 1."""

    label: str
    count: int
    share: float


def write_preview(path: Path, folder: ShardFolder, encoder: Encoder, chosen: Sequence[int]) -> None:
    """Write the page. chosen: numbers of the samples to show. Raises DataError if a shard cannot be read."""
    html = templates(Path(__file__).parent).get_template("preview_page.html.j2").render(
        title=folder.path.resolve().name, samples=len(folder), shards=len(folder.entries), survey=survey(folder, encoder),
        shown=[show(folder, encoder, number) for number in chosen], model=encoder.model, data=encoder.data,
        tokenizer=encoder.tokenizer.name, tile_size=encoder.geometry.tile_size)
    write_atomically(path, html.encode("utf-8"))


def encoded_sample(folder: ShardFolder, encoder: Encoder, number: int) -> tuple[Sample, Plan, EncodedSample]:
    """One sample of a folder as it is stored, what it costs, and as the model will see it. Raises SampleRefused, DataError."""
    sample = folder.read(number)
    sizes = [image_size(image) for image in sample.images]
    plan = encoder.plan(encoder.text_tokens(sample.turns, len(sizes)), sizes)
    return sample, plan, encoder.encode(sample, plan)


def show(folder: ShardFolder, encoder: Encoder, number: int) -> Shown:
    """One sample, or why it is refused."""
    try:
        sample, plan, encoded = encoded_sample(folder, encoder, number)
    except SampleRefused as refused:
        return Shown(folder.key(number), (), (), refused=str(refused))
    return Shown(sample.key, [_picture(encoder, image, grid) for image, grid in zip(sample.images, plan.grids, strict=True)],
                 tokens_of(encoder, encoded), encoded.length, int((encoded.loss_weights > 0).sum()), len(encoded.tiles),
                 int((encoded.tile_starts < 0).sum()))


def tokens_of(encoder: Encoder, encoded: EncodedSample) -> list[Token]:
    """The sequence, box by box. Their counts sum to its length."""
    starts = {int(start): number for number, start in enumerate(encoded.tile_starts, start=1) if start >= 0}
    tokens, at = [], 0
    while at < encoded.length:
        if at in starts:
            tokens.append(Token(f"tile {starts[at]}", "visual", encoder.geometry.tokens))
        else:
            text = encoder.tokenizer.decode(encoded.tokens[at:at + 1], skip_special=False)
            tokens.append(Token(text, "learned" if encoded.loss_weights[at] > 0 else "context"))
        at += tokens[-1].count
    return tokens


def _picture(encoder: Encoder, data: bytes, grid: tuple[int, int]) -> Picture:
    tags, regular = encoder.tags_of(grid), grid[0] * grid[1]
    return Picture(thumbnail(data, SHOWN_PX), *image_size(data), *grid, tags[:regular], next(iter(tags[regular:]), None))


def survey(folder: ShardFolder, encoder: Encoder) -> Mapping[str, Sequence[Bar]]:
    """Histograms of up to SURVEYED samples, from indexes and texts alone: nothing is decoded."""
    count = min(SURVEYED, len(folder))
    sides, tiles, tokens, outcomes = [], Counter(), [], Counter()
    for place in range(count):
        number = permuted(place, len(folder), key_of("survey"))
        try:
            sizes = folder.image_sizes(number)
            plan = encoder.plan(encoder.text_tokens(read_record(folder.read_record(number)).turns, len(sizes)), sizes)
        except SampleRefused as refused:
            outcomes[refused.reason] += 1
            continue
        outcomes["used"] += 1
        tokens.append(plan.tokens)
        sides += [min(size) for size in sizes]
        tiles.update(tiles_of_grid(grid, encoder.data.thumbnail) for grid in plan.grids)
    return {"samples": _counted(outcomes), "tokens of the sequence": _binned(tokens), "tiles of a picture": _counted(tiles),
            "short side of a picture, pixels": _binned(sides)}


def _counted(found: Counter) -> list[Bar]:
    most = max(found.values(), default=1)
    return [Bar(str(name), number, number / most) for name, number in sorted(found.items(), key=lambda pair: (isinstance(pair[0], str), pair[0]))]


def _binned(values: Sequence[int]) -> list[Bar]:
    """Equal bins from the least to the most; a value each where there are few."""
    if len(set(values)) <= BARS:
        return _counted(Counter(values))
    counts, edges = np.histogram(values, bins=BARS)
    return [Bar(f"{low:,.0f} to {high:,.0f}", int(number), number / counts.max())
            for number, low, high in zip(counts, edges, edges[1:], strict=False)]
