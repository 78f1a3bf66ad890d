"""Verb `stats`: what is in a folder, from its indexes and json alone: no picture is decoded."""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from nvlm_train.config import schema
from nvlm_train.contracts import IMAGE_PLACEHOLDER
from nvlm_train.data.index import write_json
from nvlm_train.data.records import Record, read_record
from nvlm_train.data.shards import ShardFolder
from nvlm_train.data.tiling import tile_count
from nvlm_train.data.tokenizer import Tokenizer, load_tokenizer
from nvlm_train.errors import SampleRefused

SIDES = (0, 28, 64, 128, 224, 448, 896, 1344, 2688)     # lower edges of the histogram of short sides, pixels
ASPECTS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)    # of long side / short side
PERCENTILES = (0, 5, 50, 95, 99, 100)
MOST_COMMON = 10
NO_TASK = "(none)"


@dataclass
class _Task:
    """Sums over the samples of one task. Answers are counted as they are written, without spaces around them."""

    samples: int = 0
    images: int = 0
    answers: Counter[str] = field(default_factory=Counter)


def stats_of(folder: Path, tokenizer: Tokenizer | None, max_tiles: int, tile_size: int) -> dict:
    """Counts, histograms and percentiles, as JSON. tile_size in pixels. Text lengths are in characters, or tokens if they can be.

    Raises DataError if the folder cannot be read.
    """
    shards = ShardFolder(folder, folder.resolve().name)
    refused: Counter[str] = Counter()
    images: Counter[int] = Counter()
    sizes: list[tuple[int, int]] = []
    lengths: list[tuple[int, int]] = []     # context, answers
    tasks: dict[str, _Task] = {}
    for sample in range(len(shards)):
        try:
            of_sample = shards.image_sizes(sample)
            record = read_record(shards.read_record(sample))
        except SampleRefused as refusal:
            refused[refusal.reason] += 1
            continue
        images[len(of_sample)] += 1
        sizes += [size for size in of_sample if size != (0, 0)]
        refused["broken_image"] += sum(size == (0, 0) for size in of_sample)
        lengths.append(_lengths(record, tokenizer))
        task = tasks.setdefault(str(record.meta.get("task", NO_TASK)), _Task())
        task.samples, task.images = task.samples + 1, task.images + len(of_sample)
        task.answers.update(turn.text.strip() for turn in record.turns if turn.role == "assistant")
    width, height = np.array(sizes, dtype=np.int64).reshape(-1, 2).T
    short, long = np.minimum(width, height), np.maximum(width, height)
    tiles = Counter(tile_count(w, h, max_tiles, tile_size) for w, h in sizes)
    context, answers = np.array(lengths, dtype=np.int64).reshape(-1, 2).T
    unit = "tokens" if tokenizer else "characters"
    return {"folder": str(folder), "samples": len(shards), "shards": len(shards.entries),
            "bytes": sum(entry.size for entry in shards.entries), "refused": dict(+refused),
            "images": len(sizes), "images_per_sample": _sorted(images), "width": _percentiles(width), "height": _percentiles(height),
            "short_side": _histogram(short, SIDES), "aspect": _histogram(long / np.maximum(short, 1), ASPECTS),
            "tiles_per_image": _sorted(tiles), "tiling": {"max_tiles": max_tiles, "tile_size": tile_size},
            f"context_{unit}": _percentiles(context), f"answer_{unit}": _percentiles(answers),
            "tasks": {name: _task(task) for name, task in sorted(tasks.items())}}


def _lengths(record: Record, tokenizer: Tokenizer | None) -> tuple[int, int]:
    def length(answers: bool) -> int:
        texts = [turn.text.replace(IMAGE_PLACEHOLDER, "") for turn in record.turns if (turn.role == "assistant") == answers]
        return sum(len(tokenizer.encode(text)) if tokenizer else len(text) for text in texts)

    return length(False), length(True)


def _task(task: _Task) -> dict:
    common = sorted(task.answers.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_COMMON]
    return {"samples": task.samples, "images": task.images, "answers": task.answers.total(), "different_answers": len(task.answers),
            "most_common": [[answer[:100], count] for answer, count in common]}


def _sorted(counts: Counter[int]) -> dict[str, int]:
    return {str(value): counts[value] for value in sorted(counts)}


def _percentiles(values: np.ndarray) -> dict[str, int]:
    """By nearest rank, so that every number is one that occurs; empty for no values."""
    if not len(values):
        return {}
    return {str(p): int(np.percentile(values, p, method="nearest")) for p in PERCENTILES}


def _histogram(values: np.ndarray, edges: Sequence[float]) -> dict[str, int]:
    """Lower edge -> values from it up to the next one; the last has no end."""
    count = np.bincount(np.searchsorted(edges, values, "right") - 1, minlength=len(edges)) if len(values) else np.zeros(len(edges), int)
    return {f"{edge:g}": int(number) for edge, number in zip(edges, count, strict=True)}


def tables_of(found: Mapping) -> list[Table | str]:
    """For a person."""
    bytes_ = f"{found['bytes'] / 1e6:,.1f} MB"
    counts = f"{found['samples']:,} samples, {found['images']:,} images, {found['shards']:,} shards"
    lines: list[Table | str] = [f"{found['folder']}: {counts}, {bytes_}"]
    lines += [f"  cannot be used: {count:,} {reason}" for reason, count in sorted(found["refused"].items())]
    heads = ("least" if p == 0 else "most" if p == 100 else f"{p}%" for p in PERCENTILES)
    spread = Table("", *heads, title="so many of all have at most")
    for name in [key for key in found if key in ("width", "height") or key.startswith(("context_", "answer_"))]:
        spread.add_row(name.replace("_", ", "), *(f"{value:,}" for value in found[name].values()))
    lines.append(spread)
    tiling = found["tiling"]
    titles = {"images_per_sample": "images of a sample", "short_side": "short side, pixels from",
              "aspect": "long side / short side, from",
              "tiles_per_image": f"tiles of an image ({tiling['max_tiles']} of {tiling['tile_size']} px at most, and a thumbnail)"}
    for name, title in titles.items():
        table = Table(*found[name], title=title)
        table.add_row(*(f"{count:,}" for count in found[name].values()))
        lines.append(table)
    tasks = Table("task", "samples", "images", "different answers", "most common", title="tasks")
    for name, task in found["tasks"].items():
        common = ", ".join(f"{answer[:20]!r} {count / task['answers']:.0%}" for answer, count in task["most_common"][:3])
        tasks.add_row(name, f"{task['samples']:,}", f"{task['images']:,}", f"{task['different_answers']:,}", common)
    return [*lines, tasks]


def main(arguments: list[str]) -> int:
    """`python -m data_prep stats FOLDER ...`"""
    model = schema.Model()
    parser = argparse.ArgumentParser(prog="python -m data_prep stats", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--tokenizer", help="tiny, or the path of a tokenizer.json: lengths are told in its tokens")
    parser.add_argument("--max-tiles", type=int, default=schema.Data().max_tiles, help="(default %(default)s)")
    parser.add_argument("--tile-size", type=int, default=model.vision.tile_size, help="pixels (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write it all (default: FOLDER/stats.json)")
    options = parser.parse_args(arguments)
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    found = stats_of(options.folder, tokenizer, options.max_tiles, options.tile_size)
    Console(highlight=False, soft_wrap=True, markup=False).print(*tables_of(found), sep="\n")
    write_json(options.json or options.folder / "stats.json", found)
    return 0
