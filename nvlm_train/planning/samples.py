"""Samples of a stage where its shards cannot be read: assumed ones, drawn from a fixed seed.

Their lengths are those of the workload that this project measures its speed on: texts log-normal, pictures of one to six tiles with a
thumbnail. Everything assumed is said in a sentence beside the plan.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nvlm_train.config.request import Assume
from nvlm_train.config.schema import Run
from nvlm_train.geometry import FEWER_TILES, geometry_of, with_thumbnail
from nvlm_train.model.accounting import SampleWork

TAG_TOKENS = 5                                  # of `<tile_1>` in Qwen's and Yi's vocabularies; all tags are equally long
TEXT_SHARE = 0.2                                # of finetuning samples, where the blend does not say; the paper's is not public
REGULAR_TILES = (1, 1, 2, 3, 4, 4, 6, 6, 6)     # of a finetuning picture, thumbnail apart; each equally often


@dataclass(frozen=True)
class Lengths:
    """A log-normal distribution of text tokens, cut off at both ends."""

    mean_log: float
    deviation: float
    least: int
    most: int

    def draw(self, source: random.Random) -> int:
        return min(self.most, max(self.least, int(source.lognormvariate(self.mean_log, self.deviation))))


CAPTIONS, ANSWERS, TEXTS = Lengths(3.9, 0.6, 12, 250), Lengths(4.9, 0.7, 24, 1300), Lengths(6.0, 0.7, 24, 1300)


def assumed_samples(run: Run, said: Assume, count: int, seed: int = 1) -> list[SampleWork]:
    """`count` samples that keep the stage's limits. said: what the user says of them; what is not said: see the module."""
    draw, share = random.Random(seed), _text_share(run, said)
    found = []
    for _ in range(count):
        pictured = draw.random() >= share
        lengths = TEXTS if not pictured else CAPTIONS if run.data.format == "pretrain" else ANSWERS
        tiles = _tiles(run, said, draw) if pictured else 0
        text = lengths.draw(draw) if said.text_tokens is None else said.text_tokens
        found.append(sample_of(run, tiles, text, _learned(run, said, text)))
    return found


def sentences(run: Run, said: Assume) -> list[str]:
    """What is assumed, for people."""
    share = _text_share(run, said)
    text = "captions" if run.data.format == "pretrain" else "answers"
    lengths = CAPTIONS if run.data.format == "pretrain" else ANSWERS
    drawn = f"{text} of {lengths.least} to {lengths.most:,} tokens, log-normal with the median {_median(lengths)}"
    if share:
        drawn += f", and texts without a picture with the median {_median(TEXTS)}"
    found = [f"share of samples without a picture: {share:.0%} (assume.text_share)",
             f"text of a sample: {drawn if said.text_tokens is None else f'{said.text_tokens:,} tokens'} (assume.text_tokens)"]
    if said.tiles is not None:
        found.append(f"tiles of a picture: {said.tiles} (assume.tiles)")
    elif run.data.max_tiles > 1:
        found.append(f"tiles of a picture: {_listed(run)}, each equally often, thumbnail included (assume.tiles)")
    learned = "all but 8" if run.data.format == "pretrain" else "60%"
    found.append(f"tokens of a text with a loss: {learned if said.learned is None else f'{said.learned:.0%}'} (assume.learned)")
    if run.model.tags.kind != "none":
        found.append(f"a tile's tag: {TAG_TOKENS} tokens")
    return found


def sample_of(run: Run, tiles: int, text: int, learned: int) -> SampleWork:
    """One picture of so many tiles, thumbnail included, before its text, in the stage's limits: a longer sample gets fewer tiles, and
    if that is not enough a shorter text (`data/layout.py` tells who reads what)."""
    for limit in (run.data.max_tiles, *FEWER_TILES):
        tiles = min(tiles, with_thumbnail(limit, run.data.thumbnail), run.data.pack_tiles)
        if _shown(run, tiles) + text <= run.data.max_tokens:
            break
    text = min(text, run.data.max_tokens - _shown(run, tiles))
    tag, each, tokens = _tag(run), geometry_of(run.model).tokens, _shown(run, tiles) + text
    learned = min(learned, text)
    if run.model.architecture == "nvlm_d" or not tiles:
        return SampleWork(tokens, tiles, learned)
    if run.model.architecture == "nvlm_x":
        bound = tag * tiles if run.model.cross_attention.tag_mask else 0
        pairs = bound * each + (tokens - bound) * tiles * each
        return SampleWork(tokens, tiles, learned, tiles * each, tokens, pairs)
    kept = tiles - 1 if run.data.thumbnail or tiles == 1 else tiles
    memory = kept * (each + tag)
    return SampleWork(tokens, tiles, learned, memory, tokens if kept else 0, tokens * memory)


def _shown(run: Run, tiles: int) -> int:
    """Tokens that a picture's tiles and tags take in the sequence."""
    tag, each = _tag(run), geometry_of(run.model).tokens
    if run.model.architecture == "nvlm_d":
        return tiles * (each + tag)
    if run.model.architecture == "nvlm_x":
        return tiles * tag
    return (each + tag) * (tiles > 0 and (run.data.thumbnail or tiles == 1))


def _tag(run: Run) -> int:
    return 0 if run.model.tags.kind == "none" else TAG_TOKENS


def _tiles(run: Run, said: Assume, draw: random.Random) -> int:
    if said.tiles is not None:
        return said.tiles
    return _tiles_of(run, draw.choice(REGULAR_TILES))


def _tiles_of(run: Run, regular: int) -> int:
    return with_thumbnail(min(regular, run.data.max_tiles), run.data.thumbnail)


def _learned(run: Run, said: Assume, text: int) -> int:
    if said.learned is not None:
        return int(text * said.learned)
    return max(8, text - 8) if run.data.format == "pretrain" else max(8, int(text * 0.6))


def _text_share(run: Run, said: Assume) -> float:
    """As said, else of the blend's sources those called `text`; text without pictures enters at finetuning only (section 5.3)."""
    if said.text_share is not None:
        return said.text_share
    if run.data.format == "pretrain":
        return 0.0
    weights = dict(_weights(run))
    total = sum(weights.values())
    return (weights.get(True, 0.0) / total if total else 0.0) or TEXT_SHARE


def _weights(run: Run) -> Iterator[tuple[bool, float]]:
    """(whether it is text alone, weight of all such sources)."""
    for text in (True, False):
        yield text, sum(source.weight for name, source in run.data.blend.items() if _is_text(name, source.path) == text)


def _is_text(name: str, path: str) -> bool:
    return "text" in (name, path.rstrip("/").split("/")[-1])


def _median(lengths: Lengths) -> int:
    return round(2.718281828 ** lengths.mean_log)


def _listed(run: Run) -> str:
    return ", ".join(str(_tiles_of(run, regular)) for regular in REGULAR_TILES)


def means(samples: Sequence[SampleWork]) -> dict[str, float]:
    """Tokens, tiles, supervised and memory tokens of a mean sample."""
    count = max(1, len(samples))
    return {name: sum(getattr(sample, name) for sample in samples) / count for name in ("tokens", "tiles", "supervised", "memory_tokens")}
