"""Which parameters a stage trains, by component or pattern. A pattern that matches nothing is an error, not a wish."""

from fnmatch import fnmatchcase

from nvlm_train.errors import ConfigError

CROSS_ATTENTION = (".cross_attention.", ".pre_cross_attn_layernorm.", ".cross_attn_bda.")


# What Transformer Engine calls a norm that it computes inside a linear layer.
FUSED_NORMS = {"self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
               "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight"}


def plain_name(name: str) -> str:
    """A parameter's name, the same under all kernels: what patterns are matched with."""
    for fused, plain in FUSED_NORMS.items():
        if name.endswith(fused):
            return name.removesuffix(fused) + plain
    return name


def is_cross_attention(name: str) -> bool:
    """Whether a parameter belongs to a gated cross-attention layer, which sits inside the language model."""
    return any(part in name for part in CROSS_ATTENTION)


def matches(pattern: str, name: str) -> bool:
    """`connector` matches the whole component; `language.decoder.layers.0.*` matches names like a shell pattern.

    `cross_attention` is the gated layers alone; `language` includes them.
    """
    if pattern == "cross_attention":
        return is_cross_attention(name)
    return name == pattern or name.startswith(pattern + ".") or fnmatchcase(name, pattern)


def unmatched(patterns, names) -> list[str]:
    """Patterns that match none of the names."""
    return [p for p in patterns if not any(matches(p, n) for n in names)]


def set_trainable(named_parameters, patterns) -> None:
    """Train what a pattern matches, freeze the rest. named_parameters: (whole-model name, parameter) pairs of this rank."""
    for name, param in named_parameters:
        param.requires_grad_(any(matches(p, name) for p in patterns))


def refuse_unmatched(patterns, names, key: str) -> None:
    """Raise ConfigError if a pattern matches none of the whole model's parameter names."""
    lost = unmatched(patterns, names)
    if lost:
        raise ConfigError([f"{key}: {p!r} matches no parameter; components are vision, connector, language and (NVLM-X, NVLM-H) cross_attention, "
                           f"a parameter is named like {min(names)!r}" for p in lost])
