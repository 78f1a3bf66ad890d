"""Initial values: a function of (seed, name, full tensor), then sliced by the checkpoint's own sharding.

So every layout starts from the same weights, whatever its tensor, pipeline or data-parallel sizes, and one description of
who holds what (the sharded state dict) serves initialising, importing and checkpointing.
"""

import hashlib
import math
from collections.abc import Iterator

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor

from nvlm_train.config.schema import Model
from nvlm_train.model.padding import real_shape


def shards(sharded_state: dict) -> Iterator[ShardedTensor]:
    """Every sharded tensor of a sharded state dict; the two halves of SwiGLU's first linear one by one."""
    for value in sharded_state.values():
        if isinstance(value, dict):
            yield from shards(value)
        elif isinstance(value, ShardedTensorFactory):
            built = value.build()
            yield from shards(built if isinstance(built, dict) else dict(enumerate(built)))
        elif isinstance(value, ShardedTensor):
            yield value


def place(shard: ShardedTensor, full) -> None:
    """Copy this rank's part of a full tensor (or of a safetensors slice, which reads no more than that) into the parameter.
    Where the parameter is padded, the full tensor is smaller: what it lacks becomes zero."""
    shape = shard.local_shape
    wanted = [slice(o, o + size) for o, size in zip(shard.global_offset, shape)]
    part = full[tuple(wanted)]
    with torch.no_grad():
        target = shard.data.view(shape)
        target.zero_()
        target[tuple(slice(0, size) for size in part.shape)].copy_(part)


def _draw(key: str, shape: tuple[int, ...], seed: int, std: float) -> Tensor:
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(shape, generator=generator) * std


def _spread(key: str, shape: tuple[int, ...], model: Model) -> float:
    """Standard deviation of a weight. The decoder as Megatron's (output projections divided by sqrt(2 layers)); encoder and
    connector by fan-in, since their widths differ."""
    name = key.rsplit(".", 2)
    if key.startswith("language."):
        into_residual = len(name) > 1 and name[-2] in ("linear_proj", "linear_fc2")
        return model.init_std / math.sqrt(2 * model.language.layers) if into_residual else model.init_std
    if key.endswith(("class_token", "position", "queries")):
        return 0.02
    return 1 / math.sqrt(math.prod(shape[1:]))


def initialise(module, model: Model, seed: int) -> None:
    """Fill every parameter of this rank's stage in place.

    Norm weights are 1, biases 0, LayerScale and cross-attention's gates their configured values, padding 0; everything else is
    normal. module: a stage (`Nvlm`).
    """
    for shard in shards(module.sharded_state_dict()):
        key, shape = shard.key, real_shape(shard)
        last = key.rsplit(".", 1)[-1]
        if last in ("ls1", "ls2"):
            full = torch.full(shape, model.vision.layer_scale_init)
        elif last == "gate":
            full = torch.full(shape, model.cross_attention.gate_init)
        elif last in ("bias", "patch_bias"):
            full = torch.zeros(shape)
        elif "norm" in ".".join(key.split(".")[-2:]):
            full = torch.ones(shape)
        else:
            full = _draw(key, shape, seed, _spread(key, shape, model))
        place(shard, full)
