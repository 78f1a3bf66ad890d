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
    Batch,
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

from benchmarks.data_path import MAX_TILES, TILE
from benchmarks.peers import work
from benchmarks.peers.work import Meter, Work, options, tell
from nvlm_train.config.schema import Data, Model
from nvlm_train.data.images import image_size
from nvlm_train.data.packing import Cost, pack
from nvlm_train.data.tiling import tile_count
from nvlm_train.geometry import geometry_of

SHUFFLE = 100   # samples, still encoded
SLICE = 100     # samples read in a row before the next place is drawn
PACKING = 32    # samples packed among themselves, twice a step of ours: fuller rows
TILE_TOKENS = geometry_of(Model()).tokens
WAYS = (*work.WAYS, "fast_rows")


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


@edataclass
class Costed(Sample):
    """A sample of which only the picture's header was read."""

    jpeg: bytes
    tile_count: int
    tokens: torch.Tensor
    learned: torch.Tensor


@edataclass
class Row(Batch):
    """Samples end to end: tiles [n, 3, P, P]; tokens, learned [l]; lengths [s], of the samples."""

    tiles: torch.Tensor
    tokens: torch.Tensor
    learned: torch.Tensor
    lengths: torch.Tensor


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
        return Encoded.derive_from(sample, tiles=self._work.tiles(sample.jpeg), **self._work.text(sample.record))


class RowEncoder(DefaultTaskEncoder):
    """The same, packed into rows by Energon's hooks: costs first, then which samples share a row, then their tiles."""

    cookers = (Cooker(cook),)
    decoder = None

    def __init__(self, way: str):
        super().__init__()
        self._work, self._settings = Work(way), Data()

    @stateless
    def preencode_sample(self, sample: Pair) -> Costed:
        tiles = tile_count(*image_size(sample.jpeg), MAX_TILES, TILE)
        return Costed.derive_from(sample, jpeg=sample.jpeg, tile_count=tiles, **self._work.text(sample.record))

    @stateless
    def select_samples_to_pack(self, samples: list[Costed]) -> list[list[Costed]]:
        costs = [Cost(len(sample.tokens) + TILE_TOKENS * sample.tile_count, sample.tile_count) for sample in samples]
        rows = pack(costs, self._settings.pack_tokens, self._settings.pack_tiles)
        return [[samples[i] for i in row] for row in rows]

    @stateless
    def postencode_sample(self, sample: Costed) -> Encoded:
        return Encoded.derive_from(sample, tiles=self._work.tiles(sample.jpeg), tokens=sample.tokens, learned=sample.learned)

    @stateless
    def pack_selected_samples(self, samples: list[Encoded]) -> Row:
        joined = {name: torch.cat([getattr(sample, name) for sample in samples]) for name in ("tiles", "tokens", "learned")}
        return Row.from_samples(samples, lengths=torch.tensor([len(sample.tokens) for sample in samples]), **joined)


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
    """Every sample of the folder once, of which the first `warm` are not timed. way: one of WAYS."""
    rows = way == "fast_rows"
    encoder = RowEncoder("fast") if rows else TaskEncoder(way)
    dataset = get_train_dataset(indexed(shards), worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers), batch_size=None,
                                packing_buffer_size=PACKING if rows else None, shuffle_buffer_size=SHUFFLE, max_samples_per_sequence=SLICE,
                                task_encoder=encoder, repeat=False)
    meter = Meter(warm)
    for given in get_loader(dataset):
        meter.saw(len(given.lengths) if rows else 1, len(given.tiles), len(given.tokens))
    return meter.stop()


def main() -> int:
    chosen = options(__doc__.splitlines()[0], WAYS)
    tell(epoch(chosen.shards, chosen.way, chosen.workers, chosen.warm), ["megatron-energon", "torch", "pillow", "simplejpeg", "tokenizers"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
