"""Imported weights on two ranks, split by tensor and then by pipeline: is each rank's part that of the whole tensor?

    weights_ranks.py WEIGHTS OUT.json
"""

import json
import sys
from contextlib import closing
from pathlib import Path

import torch
from safetensors.torch import load_file

from nvlm_train.config.compose import compose
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.errors import CheckpointError
from nvlm_train.model.init import shards
from nvlm_train.training.backbones import load_backbones_of
from nvlm_train.training.stages import build_engine


def main() -> None:
    weights, out = map(Path, sys.argv[1:])
    whole = load_file(weights / "model.safetensors")
    facts = []
    for layout in ("layout.tensor=2", "layout.pipeline=2"):
        parts = [f"model.{part}.weights={weights}" for part in ("vision", "connector", "language")]
        [run] = compose(["recipe=nvlm_d_tiny_6b", "stage=sft", "run.device=cpu", "model.language.vocab=1025", layout, *parts])
        tokenizer = load_tokenizer(run.model.tokenizer)
        with closing(build_engine(run)) as engine:
            load_backbones_of(run, engine, tokenizer)
            checked = engine.gather_objects([_compare(shard, whole) for stage in engine.stages()
                                             for shard in shards(stage.sharded_state_dict())])
            found = [one for rank in checked for one in rank]
            facts.append({"tensors": len(found), "wrong": [key for key, right, _ in found if not right],
                          "padded": sum(padded for *_, padded in found), "refused": _damaged(run, engine, tokenizer, weights)})
    if engine.is_main:
        out.write_text(json.dumps(facts))


def _compare(shard, whole) -> tuple[str, bool, bool]:
    """(name, whether this rank holds its part of the whole tensor and zeros beyond it, whether there is anything beyond)."""
    full = whole[shard.key]
    expected = torch.zeros(shard.global_shape)
    expected[tuple(slice(0, size) for size in full.shape)] = full
    mine = expected[tuple(slice(o, o + size) for o, size in zip(shard.global_offset, shard.local_shape))]
    right = torch.equal(shard.data.detach().view(shard.local_shape), mine)
    return shard.key, right, tuple(full.shape) != tuple(shard.global_shape)


def _damaged(run, engine, tokenizer, weights: Path) -> str:
    """What every rank is told when a file was damaged after the import; the last byte is put right again."""
    file = weights / "model.safetensors"
    _flip_last(file, engine)
    try:
        load_backbones_of(run, engine, tokenizer)
        told = ["nothing"]
    except CheckpointError as error:
        told = [str(error)]
    told = engine.gather_objects(told[0])
    _flip_last(file, engine)
    return min(told, key=len)


def _flip_last(file: Path, engine) -> None:
    engine.barrier()
    if engine.is_main:
        with file.open("r+b") as stream:
            stream.seek(-1, 2)
            byte = stream.read(1)[0]
            stream.seek(-1, 2)
            stream.write(bytes([byte ^ 1]))
    engine.barrier()


if __name__ == "__main__":
    main()
