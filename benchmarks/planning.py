"""What deciding a step costs and how well it packs, without reading a picture. `python -m benchmarks.planning [--samples 1000000]`

    packing   fill of the rows and imbalance of the ranks' estimated work, on steps of a finetuning blend with 30% text
    index     opening a folder of a million samples, the order of a step, the sizes of its pictures, and the memory it takes

Milliseconds are CPU time, the best of several; of opening, and of the sizes the first time, once and by the clock. A step's imbalance
is the heaviest rank's work over the mean, less 1. A small step cannot be level, since rows are whole: beside it stands what full rows,
all alike, would give.
"""

import argparse
import hashlib
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.contenders.workloads import conversations
from benchmarks.results import tell
from benchmarks.timing import seconds, took
from nvlm_train.data.index import ShardEntry, ShardIndex, Strings, write_folder_index, write_shard_index
from nvlm_train.data.order import BlendSource, Order
from nvlm_train.data.packing import Cost, deal, pack
from nvlm_train.data.shards import ShardFolder

TOKENS, TILES = 4096, 32                    # of a row
TOKENS_A_TILE = 262                         # 256 and its tag
STEPS = ((128, 8), (256, 8), (1024, 8), (1024, 64), (4096, 64))   # samples, data-parallel ranks
SHARD = 1000                                # samples


def packed(samples: int, ranks: int) -> dict:
    """Fill, imbalance and milliseconds of one step."""
    costs = [Cost(piece.tiles * TOKENS_A_TILE + piece.text, piece.tiles) for piece in conversations(samples)]
    rows = pack(costs, TOKENS, TILES)
    dealt = deal(rows, costs, ranks)
    loads = [sum(costs[i].work for row in rank for i in row) for rank in dealt]
    mean = sum(loads) / ranks
    tokens = sum(cost.tokens for cost in costs)
    return {"samples": samples, "ranks": ranks, "rows": len(rows), "rows_bound": math.ceil(tokens / TOKENS),
            "fill": tokens / (len(rows) * TOKENS), "fill_with_empty_rows": tokens / (sum(map(len, dealt)) * TOKENS),
            "imbalance": max(loads) / mean - 1, "imbalance_of_equal_rows": math.ceil(len(rows) / ranks) * ranks / len(rows) - 1,
            "ms_per_100": best(lambda: deal(pack(costs, TOKENS, TILES), costs, ranks)) / samples * 100}


def best(work: Callable[[], object], rounds: int = 7) -> float:
    """CPU milliseconds of the quickest of several rounds."""
    return 1e3 * min(took(work).cpu_seconds for _ in range(rounds))


def write_index(folder: Path, samples: int) -> None:
    """The index of `samples` samples with a picture each, and shards of the right size with nothing in them."""
    entries = []
    places = np.arange(SHARD)
    for first in range(0, samples, SHARD):
        name = f"shard-{first // SHARD:06d}.tar"
        with open(folder / name, "wb") as shard:
            shard.truncate(SHARD * 60_000)
        entry = ShardEntry(name, SHARD * 60_000, hashlib.sha256(name.encode()).hexdigest(), SHARD)
        write_shard_index(folder, entry, ShardIndex(
            keys=Strings.of([f"photograph-{first + place:09d}" for place in range(SHARD)]),
            records=np.stack([places * 60_000 + 512, np.full(SHARD, 300)], axis=1), image_first=np.arange(SHARD + 1),
            images=np.stack([places * 60_000 + 2000, np.full(SHARD, 50_000), 300 + places, np.full(SHARD, 480)], axis=1),
            sha256=np.zeros((SHARD, 32), dtype=np.uint8), refused={}))
        entries.append(entry)
    write_folder_index(folder, entries)


def indexed(samples: int, step: int = 1024) -> dict:
    """Times and memory of a step from a folder of `samples` samples."""
    with tempfile.TemporaryDirectory() as name:
        write_index(Path(name), samples)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        folder = ShardFolder(name, "photographs")
        opened = time.perf_counter() - start
        order = Order(1, [BlendSource("photographs", len(folder)), BlendSource("text", 50_000, 0.3)])
        ordered = best(lambda: order.between(10 * step, 11 * step))

        def sizes(start: int) -> list:
            return [folder.image_sizes(pick.sample) for pick in order.between(start, start + step) if pick.source == 0]

        first = seconds(lambda: sizes(0))
        later = best(lambda: sizes(step))
        for shard in range(len(folder.entries)):
            folder.index(shard)
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"samples": len(folder), "step": step, "open_ms": opened * 1e3, "order_ms": ordered, "first_sizes_ms": first * 1e3,
            "sizes_ms": later, "memory_mib": memory}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_000_000, help="samples of the index (default 1000000)")
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    options = parser.parse_args(arguments)
    steps = [packed(samples, ranks) for samples, ranks in STEPS]
    print(f"{'samples':>8}{'ranks':>7}{'rows':>7}{'bound':>7}{'fill':>8}{'empty too':>11}{'imbalance':>11}{'alike':>8}{'ms/100':>8}")
    for row in steps:
        print(f"{row['samples']:>8,}{row['ranks']:>7}{row['rows']:>7,}{row['rows_bound']:>7,}{row['fill']:>8.1%}"
              f"{row['fill_with_empty_rows']:>11.1%}{row['imbalance']:>11.1%}{row['imbalance_of_equal_rows']:>8.1%}{row['ms_per_100']:>8.2f}")
    index = indexed(options.samples)
    print(f"{index['samples']:,} samples: open {index['open_ms']:.0f} ms, order of {index['step']:,} {index['order_ms']:.1f} ms, sizes of their "
          f"pictures {index['first_sizes_ms']:.0f} ms the first time, then {index['sizes_ms']:.1f} ms; {index['memory_mib']:.0f} MiB in all")
    tell({"packing": steps, "index": index}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
