"""A ZeRO model as a checkpoint holds it: the names, shapes and sections of the Megatron engine's, so that each reads the other's.

ZeRO cuts parameters where it likes; a checkpoint holds them whole, by name. Every tensor has an owner, one rank that keeps it in host
memory while a checkpoint is written or read: an owner's share is about 1/ranks of the model and its optimizer state, and no rank ever
holds more than that and one tensor on its device.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from torch import Tensor
from torch.nn import Module, Parameter

from nvlm_train.engine.zero_tensors import MASTER, MOMENTS, ZeroTensors
from nvlm_train.model.nvlm import Nvlm

_MAIN = (0, 0, 0)   # replica id of the one copy that is written


@dataclass(frozen=True)
class Owned:
    """One parameter: its place in a checkpoint, and the rank that keeps it meanwhile. sharded: without data."""

    name: str
    param: Parameter
    sharded: ShardedTensor | ShardedTensorFactory
    owner: int

    def holding(self, value: Tensor, prefix: str = "") -> ShardedTensor | ShardedTensorFactory:
        """The same with data, under a prefixed key."""
        dtype = {"dtype": value.dtype} if isinstance(self.sharded, ShardedTensor) else {}
        return replace(self.sharded, key=prefix + self.sharded.key, data=value, replica_id=_MAIN, **dtype)


class Held:
    """Some components of a model as sharded tensors in memory: enough of a stage for `fill`, `initialise` and fingerprints."""

    def __init__(self, state: dict):
        self._state = state
        for name in state:
            setattr(self, name.partition(".")[0], name)     # what is asked of it is whether it is there

    def sharded_state_dict(self) -> dict:
        return self._state


class ZeroState:
    """See the module. Built before ZeRO takes over the model's forward, on every rank alike."""

    def __init__(self, model: Nvlm):
        self._objects: dict[str, ShardedObject] = {}
        self.owned: list[Owned] = []
        found = []
        with _stand_ins(model) as params:
            for name, sharded in model.sharded_state_dict().items():
                if isinstance(sharded, ShardedObject):
                    self._objects[name] = sharded
                else:
                    found.append((name, params[sharded.data], sharded))
        owners = _share_out([sharded.data.numel() for _, _, sharded in found])
        self.owned = [Owned(*facts, owner) for facts, owner in zip(found, owners, strict=True)]

    def empty(self) -> dict:
        """The model's section with room for the tensors that this rank owns, in host memory. Local."""
        return {one.name: one.holding(torch.empty(one.sharded.data.shape, dtype=one.sharded.data.dtype))
                for one in self.owned if one.owner == dist.get_rank()}

    def weights(self, tensors: ZeroTensors, component: str | None = None) -> dict:
        """The model's section, or one component of it, with the tensors that this rank owns in host memory. A collective."""
        ones = [one for one in self.owned if component is None or one.name.startswith(component + ".")]
        objects = {} if component else self._objects
        return dict(objects) | {one.name: one.holding(value) for one, value in self._collect(tensors.weight, ones)}

    def optimizer(self, tensors: ZeroTensors) -> dict:
        """The optimizer's section, laid out as Megatron's. A collective."""
        state: dict[str, dict] = {one.name: {} for one in self._trained if one.owner == dist.get_rank()}
        for key in (MASTER, *MOMENTS):
            for one, value in self._collect(lambda param, key=key: tensors.state(param, key), self._trained):
                state[one.name][key] = one.holding(value, f"optimizer.state.{key}.")
        return {"optimizer": {"param_groups": [_as_megatron(group, tensors.step) for group in tensors.groups]},
                "param_state": state, "param_state_sharding_type": "fully_reshardable"}

    def load(self, tensors: ZeroTensors, model: Mapping[str, Tensor], optimizer: Mapping[str, Any] | None) -> None:
        """Hand every owner's tensors to all ranks, one by one, each of which keeps its parts. A collective.

        model: by name, what this rank owns. optimizer: the same way `optimizer` gives it; None: master weights follow the weights.
        """
        for one in self.owned:
            value = _from_owner(one, model.get(one.name), one.sharded.data.dtype)
            tensors.set_weight(one.param, value)
            if optimizer is None and one.param.requires_grad:
                tensors.set_state(one.param, MASTER, value.float())
        if optimizer is not None:
            for one in self._trained:
                own = optimizer["param_state"].get(one.name, {})
                for key in (MASTER, *MOMENTS):
                    tensors.set_state(one.param, key, _from_owner(one, own.get(key), torch.float32))
            tensors.step = optimizer["optimizer"]["param_groups"][0].get("step", 0)
        tensors.gather_small()

    @property
    def _trained(self) -> list[Owned]:
        return [one for one in self.owned if one.param.requires_grad]

    def _collect(self, whole, ones: list[Owned]) -> Iterator[tuple[Owned, Tensor]]:
        """(parameter, its tensor in host memory) of those that this rank owns; every rank gathers all."""
        for one in ones:
            value = whole(one.param)
            if one.owner == dist.get_rank():
                yield one, value.cpu()


@contextmanager
def _stand_ins(model: Module) -> Iterator[dict[Tensor, Parameter]]:
    """Every parameter replaced by one of its whole shape without memory (ZeRO-3 has emptied the real ones), with its marks.

    Yields stand-in -> parameter.
    """
    real: dict[Parameter, Parameter] = {}
    for param in model.parameters():
        shape = getattr(param, "ds_shape", param.shape)
        real[param] = Parameter(torch.empty(shape, dtype=param.dtype, device="meta"), requires_grad=False)
        vars(real[param]).update({key: value for key, value in vars(param).items() if not key.startswith("ds_")})
    places = [(module, name, param) for module in model.modules() for name, param in module._parameters.items() if param is not None]
    for module, name, param in places:
        module._parameters[name] = real[param]
    try:
        yield {stand_in: param for param, stand_in in real.items()}
    finally:
        for module, name, param in places:
            module._parameters[name] = param


def _share_out(sizes: list[int]) -> list[int]:
    """An owner for each: the largest first, each to the rank that has least so far."""
    load, owners = [0] * dist.get_world_size(), [0] * len(sizes)
    for at in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
        owners[at] = load.index(min(load))
        load[owners[at]] += sizes[at]
    return owners


def _from_owner(one: Owned, value: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The owner's tensor on every rank's device."""
    device = one.param.device
    sent = (value.to(device, dtype).contiguous() if one.owner == dist.get_rank()
            else torch.empty(one.sharded.data.shape, dtype=dtype, device=device))
    dist.broadcast(sent, src=one.owner)
    return sent


def _as_megatron(group: dict[str, Any], step: int) -> dict[str, Any]:
    """A parameter group as Megatron's optimizer stores it, which finds its own again by these factors and rates."""
    return {"is_expert_parallel": False, "is_decoupled_lr": False, "default_config": group["lr_mult"] == 1.0,
            "step": step, **{key: group[key] for key in ("wd_mult", "lr_mult", "max_lr", "min_lr", "lr", "weight_decay", "betas", "eps")}}
