"""What a piece of the model costs one rank, by kind of work, and the linears and exchanges that all pieces are made of."""

from dataclasses import dataclass
from typing import NamedTuple

from nvlm_train.kernels import COMPILED, KernelPlan
from nvlm_train.planning.rates import ATTENTION_BACKWARD, Machine

KINDS = ("matmul", "attention", "elementwise", "waiting")
PLAIN_KERNELS = KernelPlan("cuda")      # separate operations everywhere


class Cost(NamedTuple):
    """Seconds of one rank, by kind, and what lies behind them.

    waiting: for messages of the tensor-parallel group that nothing hides; calls: kernels issued; flops: operations done, padding,
    dummy heads and recomputation included; sent, exchanged: bytes that the rank sends to its tensor- and its context-parallel group.
    """

    matmul: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    waiting: float = 0.0
    calls: float = 0.0
    flops: float = 0.0
    sent: float = 0.0
    exchanged: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.matmul + other.matmul, self.attention + other.attention, self.elementwise + other.elementwise,
                    self.waiting + other.waiting, self.calls + other.calls, self.flops + other.flops, self.sent + other.sent,
                    self.exchanged + other.exchanged)

    def scaled(self, factor: float) -> "Cost":
        return Cost(self.matmul * factor, self.attention * factor, self.elementwise * factor, self.waiting * factor,
                    self.calls * factor, self.flops * factor, self.sent * factor, self.exchanged * factor)

    @property
    def work(self) -> float:
        """Seconds of all kinds."""
        return self.matmul + self.attention + self.elementwise + self.waiting

    def seconds(self, machine: Machine) -> float:
        return machine.seconds(self.work, self.calls)


NOTHING = Cost()


@dataclass(frozen=True)
class Pass:
    """Forward and backward of one piece for one row."""

    forward: Cost = NOTHING
    backward: Cost = NOTHING

    def __add__(self, other: "Pass") -> "Pass":
        return Pass(self.forward + other.forward, self.backward + other.backward)

    def scaled(self, factor: float) -> "Pass":
        return Pass(self.forward.scaled(factor), self.backward.scaled(factor))

    def again(self, forward: Cost) -> "Pass":
        """With a part of the forward done once more before the backward."""
        return Pass(self.forward, self.backward + forward)


class Products(NamedTuple):
    """How a linear's products are made. summed: its weight's gradient is added up in the product; fp8: of numbers that torch casts."""

    summed: bool = False
    fp8: bool = False


PLAIN = Products()
# Bytes of casting a bf16 tensor to fp8 (`model.fp8_cast`), a number: read for the largest, read and written rounded, with fp32 copies between
# where that is not compiled (False); then read and written turned, where a product asks for that.
ROUNDED, TURNED = {False: 21, True: 5}, 2


@dataclass(frozen=True)
class Place:
    """One rank among `tensor` that share each layer. sequence: what lies between the linears is split over them too. context: ranks that
    share each row. kernels: what computes each part.

    bandwidth, latency_s: of messages among those of a layer; context_bandwidth, context_latency_s: of a row. Sizes of linears below are
    the whole model's on the undivided side and the rank's on the divided one.
    """

    machine: Machine
    tensor: int = 1
    sequence: bool = False
    bandwidth: float = 1.0
    latency_s: float = 0.0
    context: int = 1
    context_bandwidth: float = 1.0
    context_latency_s: float = 0.0
    kernels: KernelPlan = PLAIN_KERNELS

    @property
    def compiled(self) -> bool:
        """Whether element-wise parts are single kernels."""
        return self.kernels.elementwise == COMPILED

    @property
    def slices(self) -> int:
        """Into how many the sequence is cut between the linears."""
        return self.tensor if self.sequence else 1

    def gather(self, rows: int, width: int, number_bytes: int | None = None) -> Cost:
        """All-gather of a tensor that is whole afterwards, or reduce-scatter of one that was; ring algorithm. number_bytes: of a number, if
        not of the compute dtype."""
        if self.tensor == 1 or not rows:
            return NOTHING
        sent = rows * width * (number_bytes or self.machine.number_bytes) * (self.tensor - 1) / self.tensor
        return Cost(waiting=sent / self.bandwidth + self.latency_s, calls=1, sent=sent)

    def exchange(self, numbers: float, number_bytes: int) -> Cost:
        """All-gather or reduce-scatter over the ranks that share a row, of so many numbers of the whole row."""
        if self.context == 1 or not numbers:
            return NOTHING
        sent = numbers * number_bytes * (self.context - 1) / self.context
        return Cost(waiting=sent / self.context_bandwidth + self.context_latency_s, calls=1, exchanged=sent)

    def reduce(self, rows: int, width: int) -> Cost:
        """All-reduce: a reduce-scatter and an all-gather in one message."""
        both = self.gather(rows, width)
        return Cost(waiting=2 * both.waiting - self.latency_s * (both.calls > 0), calls=both.calls, sent=2 * both.sent)

    def matmul(self, rows: int, columns: int, inner: int, fp8: bool = False) -> Cost:
        return Cost(matmul=self.machine.matmul(rows, columns, inner, fp8), calls=1, flops=2.0 * rows * columns * inner)

    def attention(self, flops: float) -> Pass:
        """flops: of the forward."""
        backward = ATTENTION_BACKWARD * flops
        return Pass(Cost(attention=self.machine.attention(flops), calls=1, flops=flops),
                    Cost(attention=self.machine.attention(backward), calls=3, flops=backward))

    def moves(self, numbers: float, calls: int) -> Cost:
        """`calls` kernels that together read and write so many numbers of the compute dtype."""
        return Cost(elementwise=self.machine.moved(numbers * self.machine.number_bytes), calls=calls)

    def linear(self, rows: int, inner: int, columns: int, own: bool, below: bool, how: Products = PLAIN) -> Pass:
        """A linear without messages. own: its weight is trained; below: its input needs a gradient."""
        forward, backward = self.matmul(rows, columns, inner, how.fp8), NOTHING
        if own:
            backward += self.matmul(columns, inner, rows, how.fp8) + self._accumulated(inner * columns, how.summed)
        if below:
            backward += self.matmul(rows, inner, columns, how.fp8)
        if how.fp8:
            each = ROUNDED[self.compiled]
            forward += self._cast(each * rows * inner, 2)
            if own or below:
                backward += self._cast(each * rows * columns + own * TURNED * rows * (inner + columns), 2 + 2 * own)
        return Pass(forward, backward)

    def _accumulated(self, weights: int, summed: bool) -> Cost:
        """A row's gradient of so many weights in the fp32 sum."""
        each = self.machine.summed_bytes if summed else self.machine.accumulate_bytes
        return Cost(elementwise=self.machine.moved(each * weights), calls=not summed)

    def _cast(self, moved: float, calls: int) -> Cost:
        return Cost(elementwise=self.machine.moved(moved), calls=calls)

    def column(self, rows: int, inner: int, columns: int, own: bool, below: bool, how: Products = PLAIN) -> Pass:
        """A linear whose columns are divided. Forward gathers its input where that is sliced; backward sums its input's gradient
        while the weight's is made, and gathers the input once more (in fp8 a byte a number) while the input's is made (Megatron's
        overlap)."""
        done = self.linear(rows, inner, columns, own, below, how)
        forward = self.gather(rows, inner) if self.sequence else NOTHING
        backward = NOTHING
        if below:
            message = self.gather(rows, inner) if self.sequence else self.reduce(rows, inner)
            backward += beside(message, self.matmul(columns, inner, rows, how.fp8) if own else NOTHING)
        if own and self.sequence:
            again = self.gather(rows, inner, 1 if how.fp8 else None)
            backward += beside(again, self.matmul(rows, inner, columns, how.fp8) if below else NOTHING)
        return Pass(forward + done.forward, done.backward + backward)

    def row(self, rows: int, inner: int, columns: int, own: bool, below: bool, how: Products = PLAIN) -> Pass:
        """A linear whose input's width is divided: its outputs are summed over the group, or summed and sliced."""
        done = self.linear(rows, inner, columns, own, below, how)
        message = self.gather(rows, columns) if self.sequence else self.reduce(rows, columns)
        gathered = message if self.sequence and (own or below) else NOTHING
        return Pass(done.forward + message, gathered + done.backward)


def beside(message: Cost, work: Cost) -> Cost:
    """A message that travels while `work` is done: only what is left of it is waited for."""
    return Cost(waiting=max(0.0, message.waiting - work.matmul), calls=message.calls, sent=message.sent)
