"""What both stand-ins do alike: the Adam that they compute, and how they take the place of a package."""

import sys
import types
from collections.abc import Mapping
from importlib.machinery import ModuleSpec

import torch


def install(package: str, modules: Mapping[str, Mapping]) -> None:
    """Put modules (full name -> what is in it) in the place of a package, before Megatron-Core is imported."""
    assert "megatron" not in sys.modules and package not in sys.modules
    for name, names in modules.items():
        module = types.ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None, is_package=True), []
        vars(module).update(names)
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)


def adam_update(optimizer: torch.optim.Optimizer, group: dict) -> None:
    """One step of one group: decoupled weight decay, `step` and `bias_correction` in the group, fp32 moments."""
    group["step"] = group.get("step", 0) + 1
    assert group["bias_correction"]
    (b1, b2), step = group["betas"], group["step"]
    for p in (p for p in group["params"] if p.grad is not None):
        state = optimizer.state[p]
        if not state:
            state.update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        m, v = state["exp_avg"].lerp_(p.grad, 1 - b1), state["exp_avg_sq"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
        change = (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + group["eps"])
        p.sub_(group["lr"] * (change + group["weight_decay"] * p))
