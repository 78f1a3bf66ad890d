"""fp8 in Megatron-Core's linear layers without Transformer Engine: their product is replaced, all else stays theirs.

Forward, and the gradients of input and weight, are products of fp8 numbers (`fp8_cast`), summed in fp32 and returned in the compute
dtype. Weights, their gradients' sum and the optimizer are what they are without fp8, and so are names and shapes in checkpoints.

Each rank scales its own tensors, without a word to the others: what tensor parallelism adds up or puts together are finished
products. So layouts agree to fp8's rounding. A sliced sequence is gathered in the compute dtype, then cast; for the weight's gradient
each rank keeps its slice of the cast one, and a byte a number is gathered again.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nvlm_train.model.fp8_cast import PLAIN, Casts, Rounded, compiled, product


@dataclass(frozen=True)
class Messages:
    """What a layer's product owes its tensor-parallel group.

    sliced: the input is this rank's slice of the sequence, gathered first, and its gradient is summed and sliced again.
    summed: every rank's gradient of the (whole) input is a part of it.
    """

    group: dist.ProcessGroup | None
    sliced: bool
    summed: bool

    def gather(self, x: Tensor, wait: bool) -> tuple[Tensor, dist.Work | None]:
        """Slices [T / tensor, …] of all ranks, [T, …], and whom to wait for."""
        if not self.sliced:
            return x, None
        whole = x.new_empty(len(x) * self.group.size(), *x.shape[1:])
        # As bytes: not every backend knows fp8.
        ends = [t.view(torch.uint8) if t.itemsize == 1 else t for t in (whole, x.contiguous())]
        return whole, dist.all_gather_into_tensor(*ends, group=self.group, async_op=not wait)

    def own(self, whole: Tensor) -> Tensor:
        """This rank's slice, a copy: a view would keep the whole."""
        return whole.chunk(self.group.size())[self.group.rank()].clone() if self.sliced else whole

    def send(self, grad: Tensor) -> tuple[Tensor, dist.Work | None]:
        """The input's gradient to where it belongs, and whom to wait for."""
        if self.summed:
            return grad, dist.all_reduce(grad, group=self.group, async_op=True)
        if not self.sliced:
            return grad, None
        part = grad.new_empty(len(grad) // self.group.size(), *grad.shape[1:])
        return part, dist.reduce_scatter_tensor(part, grad, group=self.group, async_op=True)


class _Linear(torch.autograd.Function):
    """x [T, …, K] times weight [N, K] -> [T, …, N]. weight itself is here to receive its gradient; rows [N, K] and columns [K, N] are
    its casts, which all rows of a step share. The order of messages and products is Megatron's: each message under a product that
    does not need it."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, rows: Rounded, columns: Rounded, casts: Casts, messages: Messages) -> Tensor:
        whole, _ = messages.gather(x, wait=True)
        flat = casts.input(whole.flatten(0, -2))
        ctx.casts, ctx.messages, ctx.weight_dtype, ctx.columns = casts, messages, weight.dtype, columns
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(messages.own(flat.values), flat.scale)
        return product(flat, rows, x.dtype, quick=True).view(*whole.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        casts, messages = ctx.casts, ctx.messages
        wants_input, wants_weight = ctx.needs_input_grad[:2]
        flat = casts.gradient(grad.flatten(0, -2))
        grad_x = own_grad = grad_weight = arriving = leaving = None
        if wants_weight:
            kept, kept_scale = ctx.saved_tensors
            whole, arriving = messages.gather(kept, wait=False)
        if wants_input:
            grad_x = product(flat, ctx.columns, grad.dtype).view(*grad.shape[:-1], -1)
            own_grad, leaving = messages.send(grad_x)       # grad_x stays until the message has left
        if wants_weight:
            if arriving is not None:
                arriving.wait()
            grad_weight = product(Rounded(casts.turned(flat.values), flat.scale), Rounded(casts.turned(whole), kept_scale),
                                  ctx.weight_dtype)
        if leaving is not None:
            leaving.wait()
        return own_grad, grad_weight, None, None, None, None


class Fp8Product:
    """What a linear layer of Megatron's calls for its product, in its place (`_forward_impl`), with the casts of its weight.

    They are made where they are first needed, once for all rows of a step, and hold until `forget` or a write that torch sees: the
    optimizer's go through Megatron's buffers, of which the parameter learns nothing.
    """

    def __init__(self, casts: Casts):
        self.casts = casts
        self._weight: tuple[Rounded, Rounded] | None = None
        self._trained, self._version = True, -1

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *, allreduce_dgrad: bool = False,
                 sequence_parallel: bool = False, tp_group: dist.ProcessGroup | None = None, **_) -> Tensor:
        """Megatron's signature; what else it passes is of its own ways to add up weight gradients."""
        messages = Messages(tp_group, sequence_parallel, allreduce_dgrad)
        out = _Linear.apply(input, weight, *self._cast(weight), self.casts, messages)
        return out if bias is None else out + bias

    @torch.no_grad()
    def _cast(self, weight: Tensor) -> tuple[Rounded, Rounded]:
        """(rows [N, K], columns [K, N])."""
        if self._weight is None or self._version != weight._version:
            rows = self.casts.input(weight.detach())
            self._weight = rows, Rounded(self.casts.turned(rows.values), rows.scale)
            self._trained, self._version = weight.requires_grad, weight._version
        return self._weight

    def forget(self, frozen: bool) -> None:
        """Weights were written: the trained ones, or the frozen ones too."""
        if frozen or self._trained:
            self._weight = None


def put_in(layers: nn.Module, names: tuple[str, ...], compile_casts: bool) -> list[Fp8Product]:
    """Give the linear layers below `layers` whose names end with one of `names` products in fp8. Returns these."""
    found = [module for name, module in layers.named_modules() if name.endswith(names)]
    products = [Fp8Product(compiled() if compile_casts else PLAIN) for _ in found]
    for module, own in zip(found, products):
        module._forward_impl = own
    return products
