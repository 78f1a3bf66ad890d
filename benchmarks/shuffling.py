"""How random the order of samples is, with windows and without, and what windows save. `python -m benchmarks.shuffling`

same shard      share of neighbours in the order that lie in one shard; a perfect shuffle of s equal shards gives 1/s
repeated batch  how alike the make-up of a batch is from pass to pass: mean overlap of a batch with its best match in the next pass
shards in 1000  shards that a thousand samples in a row come from: what must be open, cached or fetched to serve them

Then the shards are read in each order from a disk whose cache was emptied first, as the loader reads them.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.results import tell
from nvlm_train.data.shuffle import FullShuffle, WindowShuffle

SHARDS, SAMPLES = 100, 200      # a source of 100 shards of 200 samples
BATCH = 256


def quality(order: np.ndarray, sizes: list[int]) -> dict[str, float]:
    """order: the samples of one pass. sizes: samples of each shard."""
    shards = np.repeat(np.arange(len(sizes)), sizes)[order]
    runs = [len(set(shards[start:start + 1000].tolist())) for start in range(0, len(order) - 999, 1000)]
    return {"same_shard": float((shards[1:] == shards[:-1]).mean()), "shards_in_1000": float(np.mean(runs))}


def repeated(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over the first pass's batches of the largest share of one that is together in a batch of the second pass again."""
    batches = -(-len(second) // BATCH)
    batch_of = np.empty(len(second), dtype=np.int64)
    batch_of[second] = np.arange(len(second)) // BATCH
    shares = [np.bincount(batch_of[first[start:start + BATCH]], minlength=batches).max() / BATCH
              for start in range(0, len(first) - BATCH + 1, BATCH)]
    return float(np.mean(shares))


def cold_read(folder: Path, order: np.ndarray, size: int) -> float:
    """MB/s of reading records of `size` bytes in this order, the files' pages dropped from the system's cache before."""
    files = [os.open(path, os.O_RDONLY) for path in sorted(folder.iterdir())]
    try:
        for file in files:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        begun = time.perf_counter()
        for sample in order.tolist():
            os.pread(files[sample // SAMPLES], size, sample % SAMPLES * size)
        return len(order) * size / 1e6 / (time.perf_counter() - begun)
    finally:
        for file in files:
            os.close(file)


def write_shards(folder: Path, size: int) -> None:
    for shard in range(SHARDS):
        with open(folder / f"{shard:03}", "wb") as file:
            file.write(os.urandom(size * SAMPLES))
            file.flush()
            os.fsync(file.fileno())     # only clean pages can be dropped


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--disk", type=Path, help="a folder on the disk to read from; not given: no reading")
    parser.add_argument("--kb", type=int, default=100, help="size of a sample")
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    options = parser.parse_args(arguments)

    size, total = [SAMPLES] * SHARDS, SHARDS * SAMPLES
    shuffles = {"full": FullShuffle(1, "source", total, SHARDS)}
    shuffles |= {f"window of {shards} shards": WindowShuffle(1, "source", size, shards * SAMPLES) for shards in (50, 20, 10, 5, 1)}
    orders = {name: [shuffle.samples(np.arange(total), epoch) for epoch in (0, 1)] for name, shuffle in shuffles.items()}
    orders["none"] = [np.arange(total)] * 2
    result = {name: {**quality(first, size), "repeated_batch": repeated(first, second)} for name, (first, second) in orders.items()}
    if options.disk:
        with tempfile.TemporaryDirectory(dir=options.disk) as folder:
            write_shards(Path(folder), options.kb << 10)
            for name, (first, _) in orders.items():
                result[name]["cold_mb_per_s"] = cold_read(Path(folder), first, options.kb << 10)
    print(f"{'order':22} {'same shard':>10} {'shards in 1000':>14} {'repeated batch':>14} {'cold MB/s':>10}")
    for name, row in result.items():
        cold = f"{row['cold_mb_per_s']:10.0f}" if "cold_mb_per_s" in row else f"{'-':>10}"
        print(f"{name:22} {row['same_shard']:10.3f} {row['shards_in_1000']:14.0f} {row['repeated_batch']:14.3f} {cold}")
    tell(result, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
