"""One epoch with this project's own loader, as training uses it: the order of the run, hashes verified, packed into rows."""

import sys
from pathlib import Path

from benchmarks.peers.work import Meter, options, tell
from nvlm_train.config import schema
from nvlm_train.data.encode import Encoder
from nvlm_train.data.loader import build_loader
from nvlm_train.data.shards import ShardFolder
from nvlm_train.data.sources import open_sources
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.errors import ConfigError

# Steps before the clock starts: by then the threads are busy and memory is used again. With --warm 128 a step is 16 samples, which is a
# rank's share in the paper's Table 3: a batch of 256 on 128 GPUs, eight of them a replica.
WARM_STEPS = 8
WAYS = ("packed", "unpacked")


def make_run(shards: Path, way: str, workers: int, step: int) -> schema.Run:
    """A finetuning run of one epoch with the schema's defaults: tiles of 448 px, six and a thumbnail, rows of 4,096 tokens and 14 tiles.

    way: one of WAYS. Raises ConfigError if the folder's samples do not fill whole steps of `step` samples.
    """
    samples = len(ShardFolder(shards, "photographs"))
    if samples % step:
        raise ConfigError(f"{samples:,} samples do not make whole steps of {step}: ask for a multiple of it (--samples, --warm)")
    data = schema.Data(blend={"photographs": schema.Source(str(shards), epochs=1)}, workers=workers, packing=way == "packed")
    return schema.Run("benchmark", "sft", train=schema.Train(steps=samples // step, global_batch=step), data=data)


def epoch(shards: Path, way: str, workers: int, warm: int) -> dict:
    """Every sample of the folder once, in steps; the `warm` samples of the first WARM_STEPS are not timed."""
    run = make_run(shards, way, workers, warm // WARM_STEPS)
    tokenizer = load_tokenizer(run.model.tokenizer, run.data.template)
    source, = open_sources(run.data.blend, Encoder(run.model, run.data, tokenizer))
    # What pictures add to the sequence beside the text: tags and visual tokens. The peers do not lay these out.
    added = sum(source.plan(i).tokens - source.counts.tokens(i) for i in range(len(source)))
    meter = Meter(warm)
    with build_loader(run, tokenizer, rank=0, size=1) as loader:
        for batch in loader:
            meter.saw(sum(len(row.keys) for row in batch.rows), sum(len(row.tiles_nCPP) for row in batch.rows),
                      sum(row.real_tokens for row in batch.rows))
        measured = meter.stop()
    return {**measured, "text_tokens": measured["text_tokens"] - added}


def main() -> int:
    chosen = options(__doc__.splitlines()[0], ways=WAYS)
    tell(epoch(chosen.shards, chosen.way, chosen.workers, chosen.warm), ["torch", "pillow", "simplejpeg", "tokenizers"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
