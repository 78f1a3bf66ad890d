"""Samples of a stage out of its own shards: records and picture sizes are read, pictures are not."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nvlm_train.config.schema import Run
from nvlm_train.contracts import EncodedSample, Sample
from nvlm_train.data.encode import Encoder
from nvlm_train.data.packing import pack_row
from nvlm_train.data.records import read_record
from nvlm_train.data.shards import ShardFolder
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.errors import DataError, SampleRefused
from nvlm_train.geometry import geometry_of
from nvlm_train.model.accounting import SampleWork
from nvlm_train.training.metrics import sample_work


@dataclass(frozen=True)
class Read:
    """samples: usable ones, each source in its share; refused: samples that training would refuse."""

    samples: Sequence[SampleWork]
    refused: int


def read_samples(run: Run, count: int = 1000, seed: int = 1) -> Read:
    """About `count` samples, drawn from the blend's folders. Raises DataError or ConfigError where training would."""
    encoder, draw = Encoder(run.model, run.data, load_tokenizer(run.model.tokenizer, run.data.template)), random.Random(seed)
    total = sum(source.weight for source in run.data.blend.values())
    found, refused = [], 0
    for name, source in run.data.blend.items():
        folder = ShardFolder(Path(source.path), name)
        wanted = max(1, round(count * source.weight / total))
        for number in draw.choices(range(len(folder)), k=wanted):
            try:
                found.append(_work(run, _encoded(encoder, folder, number)))
            except SampleRefused:
                refused += 1
        folder.close()
    if not found:
        raise DataError(f"none of {refused} samples drawn from data.blend can be used: see why with python -m data_prep check")
    return Read(found, refused)


def _encoded(encoder: Encoder, folder: ShardFolder, number: int) -> EncodedSample:
    """Features of no width stand for the pictures."""
    sizes = folder.image_sizes(number)
    record = read_record(folder.read_record(number))
    plan = encoder.plan(encoder.text_tokens(record.turns, len(sizes)), sizes)
    sample = Sample(folder.key(number), folder.source, (), record.turns, record.meta)
    return encoder.encode(sample, plan, features=torch.empty(plan.tiles, 1, 0))


def _work(run: Run, sample: EncodedSample) -> SampleWork:
    row = pack_row([sample], sample.length, 0, run.model.vision.tile_size)
    return sample_work(row, geometry_of(run.model).tokens)[0]._replace(cached=0)
