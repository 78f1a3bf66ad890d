"""Whole tensors of what ZeRO shares out: weights, fp32 master weights and AdamW's moments, one parameter at a time.

Everything here is a collective unless it says otherwise: all ranks call it for the same parameter. What DeepSpeed offers for it in
public (`safe_get_…`, `safe_set_…`, GatheredParameters) is used; the rest are four names of its three optimizers, which is why its
version is pinned.
"""

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

MASTER, MOMENTS = "param", ("exp_avg", "exp_avg_sq")    # as Megatron's checkpoints name them


class ZeroTensors:
    """Of one engine that `deepspeed.initialize` made. AdamW's state exists from the start, so that it can be loaded into."""

    def __init__(self, deepspeed: ModuleType, wrapped: Any):
        self._deepspeed, self._zero = deepspeed, wrapped.optimizer
        self._adamw = wrapped.basic_optimizer
        self._partitions = _partitions(self._zero)
        for flat, group in zip(self._partitions, self._adamw.param_groups, strict=True):
            place = flat.device if group["fused"] else "cpu"
            self._adamw.state[flat] = {"step": torch.zeros((), dtype=torch.float32, device=place),
                                       **{key: torch.zeros_like(flat) for key in MOMENTS}}
        if hasattr(self._zero, "_lazy_init_hp_params_optimizer_state"):
            self._zero._lazy_init_hp_params_optimizer_state()

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups, without their parameters. Local."""
        return [{key: value for key, value in group.items() if key != "params"} for group in self._adamw.param_groups]

    @property
    def step(self) -> int:
        """Updates that AdamW has made. Local."""
        return int(self._adamw.state[self._partitions[0]]["step"])

    @step.setter
    def step(self, count: int) -> None:
        for flat in self._partitions:
            self._adamw.state[flat]["step"].fill_(count)

    def weight(self, param: Parameter) -> Tensor:
        """A copy of the whole weight, in the model's dtype."""
        with self._gathered(param):
            return param.detach().clone()

    def set_weight(self, param: Parameter, value: Tensor) -> None:
        """value: the same on every rank."""
        with self._gathered(param, changed=True), torch.no_grad():
            param.copy_(value.view(param.shape))

    def state(self, param: Parameter, key: str) -> Tensor:
        """Master weight or a moment of a trained parameter, float32."""
        utils = self._deepspeed.utils
        found = utils.safe_get_full_fp32_param(param) if key == MASTER else utils.safe_get_full_optimizer_state(param, key)
        return found.clone()

    def set_state(self, param: Parameter, key: str, value: Tensor) -> None:
        """value: the same on every rank, float32. Local."""
        utils = self._deepspeed.utils
        if not hasattr(param, "ds_id"):
            if key == MASTER:
                utils.safe_set_full_fp32_param(param, value)
            else:
                utils.safe_set_full_optimizer_state(param, value, key)
        # ZeRO-3's setters of whole tensors refuse what does not divide by the ranks.
        elif key == MASTER:
            utils.safe_set_local_fp32_param(param, _own_part(param, value))
        else:
            utils.safe_set_local_optimizer_state(param, _own_part(param, value), key)

    def gather_small(self) -> None:
        """Under ZeRO-3, put back what is never shared out: writing a weight has divided it. Its own step ends so too."""
        small = getattr(self._zero, "persistent_parameters", ())
        if small:
            small[0].all_gather(small)

    def _gathered(self, param: Parameter, changed: bool = False) -> AbstractContextManager:
        if not hasattr(param, "ds_id"):
            return nullcontext()
        return self._deepspeed.zero.GatheredParameters([param], modifier_rank=0 if changed else None)


def _partitions(zero: Any) -> list[Tensor]:
    """This rank's fp32 part of each parameter group, as DeepSpeed's optimizers name it: ZeRO-1 and 2, ZeRO-1 in bf16, ZeRO-3."""
    names = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat")
    return next(getattr(zero, name) for name in names if hasattr(zero, name))


def _own_part(param: Parameter, value: Tensor) -> Tensor:
    """This rank's part of a whole tensor, as ZeRO-3 divides it: equal parts, the last ones padded."""
    size = param.ds_tensor.numel()
    flat = value.flatten()
    return F.pad(flat, (0, size * dist.get_world_size() - len(flat)))[size * dist.get_rank():size * (dist.get_rank() + 1)]
