"""One epoch with webdataset: shards and a shuffle buffer, members to tensors in `map`, worker processes of its WebLoader."""

import sys

import webdataset

from benchmarks.peers.work import Meter, Work, options, tell

SHUFFLE = 100   # samples, still encoded


class Encode:
    """From a sample as webdataset gives it: {"__key__", "json": bytes, "0.jpg": bytes}."""

    def __init__(self, way: str):
        self._work = Work(way)

    def __call__(self, sample: dict) -> dict:
        return {"key": sample["__key__"], **self._work(sample["json"], sample["0.jpg"])}


def main() -> int:
    chosen = options(__doc__.splitlines()[0])
    shards = sorted(str(path) for path in chosen.shards.glob("*.tar"))
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=1).shuffle(SHUFFLE).map(Encode(chosen.way))
    meter = Meter(chosen.warm)
    for sample in webdataset.WebLoader(dataset, batch_size=None, num_workers=chosen.workers):
        meter.saw(1, len(sample["tiles"]), len(sample["tokens"]))
    tell(meter.stop(), ["webdataset", "torch", "pillow", "simplejpeg", "tokenizers"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
