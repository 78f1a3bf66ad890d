"""Pretrained components as safetensors: one file (or a folder of them) holding unsharded tensors under whole-model names.

Reading takes each rank's slice straight from the file, by the same sharding that checkpoints use; nothing is unpickled.
"""

from pathlib import Path

from safetensors import safe_open

from nvlm_train.errors import CheckpointError
from nvlm_train.model.init import place, shards


def _files(path: str) -> list[Path]:
    where = Path(path).expanduser()
    found = sorted(where.glob("*.safetensors")) if where.is_dir() else [where] if where.is_file() else []
    if not found:
        raise CheckpointError(f"no safetensors at {where}: give a .safetensors file or a folder that holds some")
    return found


def load_component(stage, component: str, path: str | None) -> None:
    """Fill this rank's part of a component (`vision`, `language`, `connector`) from safetensors at `path`, in place.

    Raises CheckpointError on a missing tensor or a wrong shape, with both shapes. No path: nothing happens.
    """
    if path is None or not hasattr(stage, component):
        return
    handles = {}
    for file in _files(path):
        handle = safe_open(file, "pt")
        handles.update(dict.fromkeys(handle.keys(), handle))
    for shard in shards(stage.sharded_state_dict()):
        if not shard.key.startswith(component + "."):
            continue
        if shard.key not in handles:
            raise CheckpointError(f"{path} lacks {shard.key!r}; it holds {len(handles)} tensors such as {sorted(handles)[:2]}")
        full = handles[shard.key].get_tensor(shard.key)
        padded = shard.allow_shape_mismatch and all(a <= b for a, b in zip(full.shape, shard.global_shape))
        if full.ndim != len(shard.global_shape) or not (padded or tuple(full.shape) == tuple(shard.global_shape)):
            raise CheckpointError(f"{shard.key}: the file holds {tuple(full.shape)}, the model wants {tuple(shard.global_shape)}")
        place(shard, full)


def component_tensors(stages, component: str) -> dict:
    """Whole-model name -> tensor of a component, of an engine that holds the model unsharded (tensor = pipeline = 1)."""
    found = {}
    for stage in stages:
        for name, param in stage.named_parameters():
            if name.startswith(component + "."):
                found[name] = param.detach().float().contiguous().cpu()
    return found
