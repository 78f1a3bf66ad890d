"""Which decoder layers hold gated cross-attention. The one home of this rule: model, rules and accounting all ask here."""

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
