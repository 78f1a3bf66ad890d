"""What DeepSpeed is told: its configuration, and the parameter groups, whose rules are the Megatron engine's."""

import importlib
import logging
import os
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch
from torch.nn import Parameter

from nvlm_train.config.schema import Run, Train
from nvlm_train.errors import ConfigError
from nvlm_train.model.freeze import matches

_NEVER = 1 << 60    # steps, elements: more than there will be


def load_deepspeed(device: torch.device) -> ModuleType:
    """The package, imported where it is first used (it takes three seconds), kept from printing and from compiling anything: of its
    own operators none is needed here, and while one rank builds one, the others wait for a lock that a killed job leaves behind.

    Raises ConfigError if it does not load."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)    # it would look for every kind of device there is, and say so
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))     # without a launcher there is none, and it insists on one
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        deepspeed = importlib.import_module("deepspeed")
    except ImportError as missing:
        raise ConfigError(f"engine=deepspeed, but DeepSpeed does not load ({missing}): pip install 'nvlm-train[deepspeed]'") from missing
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # its import sets a level of its own
    for operator in deepspeed.ops.__compatible_ops__:
        deepspeed.ops.__compatible_ops__[operator] = False
    return deepspeed


def zero_config(run: Run, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's configuration for a run.

    Gradients are summed in fp32, over rows and over ranks, whatever the weights are. Rows differ in number from step to step, so the
    end of a step is announced by the engine; that the accumulation is 2 only says that there may be several. DeepSpeed's division
    by it is left out, and that by the ranks is undone in the loss.
    """
    zero: dict[str, Any] = {"stage": run.engine.zero, "sub_group_size": _NEVER}
    if run.engine.offload == "optimizer":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    return {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2, "gradient_clipping": run.train.clip_grad,
        "zero_optimization": zero, "zero_force_ds_cpu_optimizer": False, "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"}, "bf16": {"enabled": dtype == torch.bfloat16, "check_grad_overflow": True},
        "steps_per_print": _NEVER}


def adamw(named: Iterable[tuple[str, Parameter]], train: Train, fused: bool) -> torch.optim.AdamW:
    """torch's AdamW over the trainable parameters, grouped as in `engine.optimizer`: no weight decay on vectors, one learning-rate
    factor a pattern. Each group carries `lr_mult` and `wd_mult` for `set_rates`, and the schedule's ends, by which Megatron-Core 0.19
    tells groups apart in a checkpoint. fused: one kernel over all of a group."""
    groups: dict[tuple[float, float], list[Parameter]] = {}
    for name, param in named:
        if param.requires_grad:
            groups.setdefault((_rate_factor(name, train), _decay_factor(param)), []).append(param)
    return torch.optim.AdamW(
        [{"params": params, "lr_mult": rate, "wd_mult": decay, "max_lr": train.lr, "min_lr": train.min_lr}
         for (rate, decay), params in sorted(groups.items())],
        lr=train.lr, betas=(train.beta1, train.beta2), eps=train.eps, weight_decay=train.weight_decay,
        foreach=False, fused=fused)


def _decay_factor(param: Parameter) -> float:
    """0 for vectors. Under ZeRO-3 the shape is that of the whole parameter."""
    return 0.0 if len(getattr(param, "ds_shape", param.shape)) == 1 else 1.0


def _rate_factor(name: str, train: Train) -> float:
    """The factor of the patterns that match; as Megatron, which refuses two that differ."""
    factors = {float(factor) for pattern, factor in train.lr_multipliers.items() if matches(pattern, name)}
    if len(factors) > 1:
        raise ConfigError(f"train.lr_multipliers gives {name} {len(factors)} factors, {sorted(factors)}: let only one pattern match it")
    return factors.pop() if factors else 1.0
