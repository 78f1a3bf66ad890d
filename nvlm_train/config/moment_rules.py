"""Rules of AdamW's moments in bf16: which betas they serve, and who can keep them so (see `rules`)."""

from collections.abc import Iterator
from math import inf, sqrt

from nvlm_train.config.schema import Run

# Rounding at random errs by up to half of what bf16's 8 significant bits leave out, 2^-8 of a moment (root mean square). A moment is a
# mean over 1 / (1 - beta) steps, in which such errors add up to 2^-8 / sqrt(1 - beta^2). A tenth is allowed: of the second moment that is
# 5% of a step's length, its square root.
_ONE, _ALLOWED = 2**-8, 0.1
HIGHEST_BETA = sqrt(1 - (_ONE / _ALLOWED) ** 2)     # 0.9992


def moment_error(beta: float) -> float:
    """Of a moment in bf16, relative to itself, root mean square."""
    return _ONE / sqrt(1 - beta**2) if beta < 1 else inf


def rounded_moments(run: Run) -> Iterator[str]:
    train = run.train
    if train.optimizer_state != "bf16":
        return
    for name in ("beta1", "beta2"):
        if (beta := getattr(train, name)) > HIGHEST_BETA:
            yield (f"train.optimizer_state=bf16 with train.{name}={beta}: rounding would add up to {moment_error(beta):.0%} of a moment; "
                   f"use train.{name}=0.999 or less, or train.optimizer_state=fp32")
    if run.engine.name == "deepspeed":
        yield "train.optimizer_state=bf16: engine=deepspeed has an optimizer of its own; use train.optimizer_state=fp32 or engine=megatron"
    if run.model.kernels in ("te", "apex"):
        yield (f"train.optimizer_state=bf16 is torch's AdamW's, and model.kernels={run.model.kernels} takes another: use "
               "train.optimizer_state=fp32 or model.kernels=torch")


MOMENT_RULES = (rounded_moments,)
