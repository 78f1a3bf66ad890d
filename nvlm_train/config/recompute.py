"""Which parts of the model are computed again in the backward pass instead of kept from the forward, and what of that is refused. The one
home of both settings (`model.recompute`, `model.recompute_parts`): model, rules and planning ask here."""

from collections.abc import Iterator

from nvlm_train.config.layers import may_train
from nvlm_train.config.schema import Model, Run

DECODER = ("attention", "mlp")      # of every layer: core attention, the whole feed-forward
PARTS = (*DECODER, "cross_attention", "connector", "vision")


def recomputed(model: Model) -> frozenset[str]:
    """Parts that are computed again one by one; not those inside layers that are computed again whole (`model.recompute=full`)."""
    return frozenset(model.recompute_parts) | (frozenset(("attention",)) if model.recompute == "selective" else frozenset())


def recomputed_parts(run: Run) -> Iterator[str]:
    """A part that would be computed again for nothing, or that cannot be."""
    model, parts = run.model, run.model.recompute_parts
    for part in dict.fromkeys(parts):
        if part not in PARTS:
            yield f"model.recompute_parts names {part!r}, which is none of {', '.join(PARTS)}"
        if parts.count(part) > 1:
            yield f"model.recompute_parts names {part} {parts.count(part)} times: name each part once"
        if model.recompute == "full" and part in (*DECODER, "cross_attention"):
            yield (f"model.recompute_parts has {part}, and model.recompute=full computes whole decoder layers again: leave {part} out, "
                   "or set model.recompute=none")
    if "cross_attention" in parts and model.architecture == "nvlm_d":
        yield "model.recompute_parts has cross_attention, which nvlm_d has none of: leave it out"
    if "vision" in parts and not may_train(run.train.trainable, "vision"):
        yield (f"model.recompute_parts has vision, but a frozen encoder (train.trainable={list(run.train.trainable)}) keeps nothing: "
               "leave it out")


RECOMPUTE_RULES = (recomputed_parts,)
