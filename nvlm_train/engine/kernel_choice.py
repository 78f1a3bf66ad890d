"""One choice of kernels for a job: every rank looks at its own machine, and all must come to the same plan."""

import logging
from dataclasses import replace

import torch

from nvlm_train.config.fp8_layers import told
from nvlm_train.config.schema import Model
from nvlm_train.engine.agree import on_every_rank
from nvlm_train.engine.interface import Engine
from nvlm_train.errors import ConfigError
from nvlm_train.kernels import TORCH, KernelPlan, plan_for

log = logging.getLogger(__name__)


def choose_kernels(engine: Engine, model: Model, device: torch.device, sums_up: bool = True) -> KernelPlan:
    """The plan for this job, told in one line by the main rank. A collective. sums_up: the engine has fp32 buffers of gradients, to
    which a product can add.

    Raises ConfigError on every rank if one machine lacks what was chosen, or would compute otherwise than the first.
    """
    dtype = "bf16" if engine.dtype == torch.bfloat16 else "fp32"

    def choose() -> KernelPlan:
        plan = plan_for(model, device.type, dtype)
        return plan if sums_up else replace(plan, wgrad=TORCH)

    plans = on_every_rank(engine, "choosing kernels", choose, ConfigError)
    lines = [plan.line() for plan in plans]
    if len(set(lines)) > 1:
        other = next(rank for rank, line in enumerate(lines) if line != lines[0])
        raise ConfigError(f"the machines of this job would not compute alike. Rank 0: {lines[0]}. Rank {other}: {lines[other]}. "
                          "Install the same packages everywhere, see nvlm doctor")
    if engine.is_main:
        log.info("kernels: %s", lines[0])
        if plans[0].linear == "fp8":
            log.info("fp8: %s", told(model, engine.run.layout.tensor))
        for text in plans[0].lacking:
            log.warning("kernels: %s", text)
    return plans[0]
