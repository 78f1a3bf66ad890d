"""What a step's time is divided into, and the words for it."""

from typing import NamedTuple

LABELS = {
    "vision": "Vision encoder",
    "connector": "Connector",
    "self_attention": "Self-attention",
    "cross_attention": "Cross-attention",
    "mlp": "MLP",
    "output": "Output and loss",
    "optimizer": "Optimizer",
    "communication": "Communication",
    "data": "Waiting for data",
    "other": "Everything else",
    "unattributed": "Backward of unknown operations",
    "idle": "Nothing running",
}
PHASES = ("forward", "backward", "recompute")

MARK = "nvlm."          # how ranges of components begin in a trace
STEP = MARK + "step"    # stands at the end of every profiled step


class Owner(NamedTuple):
    """Whose time it is: a key of LABELS, and one of PHASES or "" for what is in none."""

    component: str
    phase: str = ""
