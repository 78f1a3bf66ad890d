"""Which of the decoder's linear layers compute in fp8 by torch's scaled matrix product: those that gain by it, if not told otherwise.

The three products of a linear layer (forward, gradients of input and weight) are 6 T K N operations, T tokens, K wide in and N
wide out. What fp8 adds is casting, memory traffic in proportion to T (K + N) since weights are cast once a step. So the gain goes
by K N / (K + N), and the measured speeds follow it:

    in -> out                        K N / (K + N)    speed over bf16's
    1.5B qkv       1,536 ->  2,048        878         0.43
    1.5B up        1,536 -> 17,920      1,415         0.95
    7B qkv         3,584 ->  4,608      2,016         0.98
    7B down       18,944 ->  3,584      3,014         1.24
    7B up          3,584 -> 37,888      3,274         1.30
    72B up at TP8  8,192 ->  7,392      3,886         1.28

One H100, torch 2.11, 8,192 tokens, forward and both gradients, casts compiled and included, the weight's each time
(`benchmarks/fp8.py` measures the same). Between 2,016 and 3,014 nothing was measured; the line between them says 1.1 at `PAYS`.
"""

import math

from nvlm_train.config.schema import Language, Model

PAYS = 2_500

# Names of the layers below a decoder layer, Megatron-Core's.
QKV, PROJ, FC1, FC2 = "self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2"


def linears(language: Language, tensor: int) -> dict[str, tuple[int, int]]:
    """Linear layer -> (width in, width out) of one of `tensor` ranks."""
    heads, groups = language.heads * language.head_dim // tensor, language.kv_heads * language.head_dim // tensor
    ffn = language.ffn // tensor
    return {QKV: (language.hidden, heads + 2 * groups), PROJ: (heads, language.hidden),
            FC1: (language.hidden, 2 * ffn), FC2: (ffn, language.hidden)}


def reach(width_in: int, width_out: int) -> float:
    """K N / (K + N): operations over numbers to be cast."""
    return width_in * width_out / (width_in + width_out)


def fp8_linears(model: Model, tensor: int) -> tuple[str, ...]:
    """The linear layers of each decoder layer that `model.fp8_layers` takes, under torch's products."""
    sides = linears(model.language, tensor)
    if model.fp8_layers == "auto":
        return tuple(name for name, (width_in, width_out) in sides.items() if reach(width_in, width_out) >= PAYS)
    return tuple(sides) if model.fp8_layers == "all" else (FC1, FC2)


def by_torch(model: Model, tensor: int) -> tuple[str, ...]:
    """The same under the run's settings: none unless torch computes in fp8."""
    return fp8_linears(model, tensor) if model.fp8 != "none" and model.kernels != "te" else ()


def rounded_weights(model: Model, tensor: int) -> int:
    """Weights of one decoder layer, on one of `tensor` ranks, that torch casts to fp8."""
    sides = linears(model.language, tensor)
    return sum(math.prod(sides[name]) for name in by_torch(model, tensor))


def told(model: Model, tensor: int) -> str:
    """One line for people: how many layers, which, and their share of the weights."""
    sides, chosen = linears(model.language, tensor), fp8_linears(model, tensor)
    weights = {name: width_in * width_out for name, (width_in, width_out) in sides.items()}
    share = sum(weights[name] for name in chosen) / sum(weights.values())
    layers = model.language.layers
    names = ", ".join(name.rpartition(".")[2] for name in chosen)
    return (f"{layers * len(chosen)} of the decoder's {layers * len(sides)} linear layers in fp8 ({names}; {share:.0%} of their "
            "weights), the others in bf16")
