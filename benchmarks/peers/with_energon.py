"""One epoch with Megatron-Energon: crude shards, a cooker and a task encoder, worker processes of its loader.

Energon keeps an index of its own beside the tars: `energon prepare` makes it in a folder of hard links, once and before the clock.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_loader,
    get_train_dataset,
    stateless,
)

from benchmarks.peers.work import Meter, Work, options, tell

SHUFFLE = 100   # samples, still encoded
SLICE = 100     # samples read in a row before the next place is drawn


@edataclass
class Pair(Sample):
    """A sample as stored."""

    record: bytes
    jpeg: bytes


@edataclass
class Encoded(Sample):
    """tiles [n, 3, P, P]; tokens, learned [l]."""

    tiles: torch.Tensor
    tokens: torch.Tensor
    learned: torch.Tensor


@stateless
def cook(sample: dict) -> Pair:
    return Pair(**basic_sample_keys(sample), record=sample["json"], jpeg=sample["0.jpg"])


class TaskEncoder(DefaultTaskEncoder):
    """Decodes with what every peer is given, and so leaves Energon's own decoder out."""

    cookers = (Cooker(cook),)
    decoder = None

    def __init__(self, way: str):
        super().__init__()
        self._work = Work(way)

    @stateless
    def encode_sample(self, sample: Pair) -> Encoded:
        return Encoded.derive_from(sample, **self._work(sample.record, sample.jpeg))


def indexed(shards: Path) -> Path:
    """A folder with hard links to the tars (copies where the file system has no links) and Energon's index."""
    folder = shards.with_name(f"{shards.name}-energon")
    if not (folder / ".nv-meta" / "dataset.yaml").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for shard in shards.glob("*.tar"):
            try:
                os.link(shard, folder / shard.name)
            except OSError:
                shutil.copyfile(shard, folder / shard.name)
        subprocess.run([Path(sys.executable).with_name("energon"), "prepare", "--non-interactive", "--no-progress", "--split-ratio", "1,0,0",
                        "--sample-type", "CrudeWebdataset", folder], check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    return folder


def epoch(shards: Path, way: str, workers: int, warm: int) -> dict:
    """Every sample of the folder once, of which the first `warm` are not timed."""
    dataset = get_train_dataset(indexed(shards), worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers), batch_size=None,
                                shuffle_buffer_size=SHUFFLE, max_samples_per_sequence=SLICE, task_encoder=TaskEncoder(way), repeat=False)
    meter = Meter(warm)
    for sample in get_loader(dataset):
        meter.saw(1, len(sample.tiles), len(sample.tokens))
    return meter.stop()


def main() -> int:
    chosen = options(__doc__.splitlines()[0])
    tell(epoch(chosen.shards, chosen.way, chosen.workers, chosen.warm), ["megatron-energon", "torch", "pillow", "simplejpeg", "tokenizers"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
