"""One choice of kernels for a job: every rank looks at its own machine, and all must come to the same plan."""

import logging

import torch

from nvlm_train.config.schema import Model
from nvlm_train.engine.agree import on_every_rank
from nvlm_train.engine.interface import Engine
from nvlm_train.errors import ConfigError
from nvlm_train.kernels import KernelPlan, plan_for

log = logging.getLogger(__name__)


def choose_kernels(engine: Engine, model: Model, device: torch.device) -> KernelPlan:
    """The plan for this job, told in one line by the main rank. A collective.

    Raises ConfigError on every rank if one machine lacks what was chosen, or would compute otherwise than the first.
    """
    dtype = "bf16" if engine.dtype == torch.bfloat16 else "fp32"
    plans = on_every_rank(engine, "choosing kernels", lambda: plan_for(model, device.type, dtype), ConfigError)
    lines = [plan.line() for plan in plans]
    if len(set(lines)) > 1:
        other = next(rank for rank, line in enumerate(lines) if line != lines[0])
        raise ConfigError(f"the machines of this job would not compute alike. Rank 0: {lines[0]}. Rank {other}: {lines[other]}. "
                          "Install the same packages everywhere, see nvlm doctor")
    if engine.is_main:
        log.info("kernels: %s", lines[0])
    return plans[0]
