"""Pretrained components as safetensors: one file (or a folder of them) holding unsharded tensors under whole-model names.

Reading takes each rank's slice straight from the file, by the same sharding that checkpoints use; nothing is unpickled.
"""

import difflib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from nvlm_train.errors import CheckpointError
from nvlm_train.model.freeze import is_cross_attention
from nvlm_train.model.init import place, shards
from nvlm_train.model.padding import real_shape

EMBEDDING, OUTPUT = "language.embedding.weight", "language.output_layer.weight"


def _files(path: str) -> list[Path]:
    where = Path(path).expanduser()
    found = sorted(where.glob("*.safetensors")) if where.is_dir() else [where] if where.is_file() else []
    if not found:
        raise CheckpointError(f"no safetensors at {where}: give a .safetensors file, a folder that holds some, or a "
                              "complete checkpoint (run, stage or step folder)")
    return found


def load_component(stage, component: str, path: str | None) -> None:
    """Fill this rank's part of a component (`vision`, `language`, `connector`) from safetensors at `path`, in place.

    Gated cross-attention keeps its initial values: a language model brings none. Raises CheckpointError on a missing tensor or a
    wrong shape, with both shapes. No path: nothing happens.
    """
    if path is not None and hasattr(stage, component):
        fill(stage, component, _files(path), path)


def fill(stage, component: str, files: Sequence[Path], where: str | Path, cross_attention: bool = False, tied: bool = False) -> None:
    """Fill this rank's part of a component from whole, unpadded tensors in safetensors files, in place.

    Of each tensor only this rank's part is read. where: what the files are, for messages. cross_attention: that of a language
    model too, which otherwise keeps its values. tied: the files' language model answers with its embedding; one here that has an
    output layer of its own gets a copy. Raises CheckpointError: a missing tensor, a wrong shape, a damaged file.
    """
    if not hasattr(stage, component):
        return
    stored = _stored(files)
    names = {OUTPUT: EMBEDDING} if tied else {}
    for shard in shards(stage.sharded_state_dict()):
        if not shard.key.startswith(component + ".") or (is_cross_attention(shard.key) and not cross_attention):
            continue
        name = names.get(shard.key, shard.key)
        if name not in stored:
            near = difflib.get_close_matches(name, stored, n=1)
            raise CheckpointError(f"{where} lacks {name!r}; it holds {len(stored)} tensors"
                                  + (f", the nearest name is {near[0]!r}" if near else f" such as {sorted(stored)[:2]}"))
        part = stored[name].get_slice(name)
        if tuple(part.get_shape()) != (wanted := real_shape(shard)):
            found = tuple(part.get_shape())
            raise CheckpointError(f"{where}: {name} has shape {found} in the file, the model wants {wanted}")
        place(shard, part)


def _stored(files: Sequence[Path]) -> dict:
    """Name -> the open file that holds it."""
    found = {}
    for file in files:
        try:
            handle = safe_open(file, "pt")
        except (SafetensorError, OSError) as problem:
            raise CheckpointError(f"{file} is no whole safetensors file: {problem}") from problem
        found.update(dict.fromkeys(handle.keys(), handle))
    return found


def component_tensors(stages, component: str) -> dict[str, torch.Tensor]:
    """Whole-model name -> float32 tensor of a component, as `load_component` takes them back.

    Of an engine that holds the model unsharded; raises CheckpointError if a part of a tensor lies on another rank.
    """
    found, held = {}, Counter()
    for stage in stages:
        for shard in shards(stage.sharded_state_dict()):
            if shard.key.startswith(component + "."):
                full = found.setdefault(shard.key, torch.zeros(shard.global_shape))
                place = tuple(slice(o, o + size) for o, size in zip(shard.global_offset, shard.local_shape))
                full[place] = shard.data.detach().float().cpu().view(shard.local_shape)
                held[shard.key] += shard.data.numel()
    partial = [key for key, full in found.items() if held[key] != full.numel()]
    if partial:
        raise CheckpointError(f"{partial[0]} is split over ranks; export with layout.tensor=1 layout.pipeline=1 on one process")
    return found
