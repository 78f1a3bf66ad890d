"""The one way to compute in fp8 on a CPU, for tests: torch's CPU has the scaled product (exact sums of fp8 numbers in fp32), no speed."""

from dataclasses import replace

from nvlm_train.engine import kernel_choice
from nvlm_train.kernels import Found, decide, plan_for

HOPPER = Found("cuda", (9, 0), varlen=True)


CHANGED: dict[str, str] = {}        # parts of the plan that a test wants otherwise


def _plan(model, device, dtype):
    """This machine's, but for fp8: what a Hopper GPU would get, its other parts on the CPU's way."""
    if model.fp8 == "none":
        return replace(plan_for(model, device, dtype), **CHANGED)
    return replace(decide(model, "bf16", HOPPER), device="cpu", attention="segments", cross_attention="segments", **CHANGED)


def install() -> None:
    """In this process only."""
    kernel_choice.plan_for = _plan
