"""Which decoder layers hold gated cross-attention, and which components a pattern may train. The one home of both: model, rules
and accounting all ask here."""

import re
from collections.abc import Iterable

from nvlm_train.config.schema import Model


def cross_layers(model: Model) -> tuple[int, ...]:
    """0-based decoder layers with gated cross-attention, ascending: the named ones, else every n-th; () for NVLM-D.

    The paper says how often (every 6 of 60, every 8 of 80 layers, section 4.3), not where it starts: here in the n-th layer.
    """
    if model.architecture == "nvlm_d":
        return ()
    cross = model.cross_attention
    if cross.layers is not None:
        return tuple(sorted(cross.layers))
    return tuple(layer for layer in range(model.language.layers) if (layer + 1) % cross.every == 0)


def may_train(patterns: Iterable[str], component: str) -> bool:
    """Whether one of `train.trainable`'s patterns names the component or a part of it, or may match a parameter of it."""
    return any(_may_reach(pattern, component) for pattern in patterns)


def _may_reach(pattern: str, component: str) -> bool:
    before = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    wild = before != pattern
    return before == component or before.startswith(f"{component}.") or (wild and component.startswith(before))
