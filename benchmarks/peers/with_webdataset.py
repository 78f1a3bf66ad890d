"""One epoch with webdataset: shards and a shuffle buffer, members to tensors in `map`, worker processes of its WebLoader."""

import sys
from pathlib import Path

import webdataset

from benchmarks.peers.work import WAYS, Meter, Work, options, tell

SHUFFLE = 100   # samples, still encoded


class Encode:
    """From a sample as webdataset gives it: {"__key__", "json": bytes, "0.jpg": bytes}."""

    def __init__(self, way: str):
        self._work = Work(way)

    def __call__(self, sample: dict) -> dict:
        return {"key": sample["__key__"], "tiles": self._work.tiles(sample["0.jpg"]), **self._work.text(sample["json"])}


def epoch(shards: Path, way: str, workers: int, warm: int) -> dict:
    """Every sample of the folder once, of which the first `warm` are not timed."""
    tars = sorted(str(path) for path in shards.glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=1).shuffle(SHUFFLE).map(Encode(way))
    meter = Meter(warm)
    for sample in webdataset.WebLoader(dataset, batch_size=None, num_workers=workers):
        meter.saw(1, len(sample["tiles"]), len(sample["tokens"]))
    return meter.stop()


def main() -> int:
    chosen = options(__doc__.splitlines()[0], WAYS)
    tell(epoch(chosen.shards, chosen.way, chosen.workers, chosen.warm), ["webdataset", "torch", "pillow", "simplejpeg", "tokenizers"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
