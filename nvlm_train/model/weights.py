"""Pretrained components as safetensors: one file (or a folder of them) holding unsharded tensors under whole-model names.

Reading takes each rank's slice straight from the file, by the same sharding that checkpoints use; nothing is unpickled.
"""

from collections import Counter
from pathlib import Path

import torch
from safetensors import safe_open

from nvlm_train.errors import CheckpointError
from nvlm_train.model.freeze import is_cross_attention
from nvlm_train.model.init import place, shards


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
    if path is None or not hasattr(stage, component):
        return
    handles = {}
    for file in _files(path):
        handle = safe_open(file, "pt")
        handles.update(dict.fromkeys(handle.keys(), handle))
    for shard in shards(stage.sharded_state_dict()):
        if not shard.key.startswith(component + ".") or is_cross_attention(shard.key):
            continue
        if shard.key not in handles:
            raise CheckpointError(f"{path} lacks {shard.key!r}; it holds {len(handles)} tensors such as {sorted(handles)[:2]}")
        full = handles[shard.key].get_tensor(shard.key)
        padded = shard.allow_shape_mismatch and all(a <= b for a, b in zip(full.shape, shard.global_shape))
        if full.ndim != len(shard.global_shape) or not (padded or tuple(full.shape) == tuple(shard.global_shape)):
            raise CheckpointError(f"{shard.key}: the file holds {tuple(full.shape)}, the model wants {tuple(shard.global_shape)}")
        place(shard, full)


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
