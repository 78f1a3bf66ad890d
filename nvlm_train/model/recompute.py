"""Parts of the model that are computed again in the backward pass, for which Megatron has no setting of its own."""

from collections.abc import Callable

import torch
from megatron.core.tensor_parallel import checkpoint
from torch import Tensor, nn


def again(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`function(*inputs)`, of which only the inputs are kept for the backward pass. function: a module, or a function without weights.

    Megatron's checkpoint takes its result for one without a gradient unless an input has one, which a connector's has not behind a frozen
    encoder: an empty tensor that has one goes along.
    """
    weights = function.parameters() if isinstance(function, nn.Module) else ()
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in (*inputs, *weights)):
        return function(*inputs)
    return checkpoint(lambda *given: function(*given[:-1]), False, *inputs, inputs[0].new_empty(0, dtype=torch.float32).requires_grad_())
