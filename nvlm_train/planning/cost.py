"""What a piece of the model costs one rank, by kind of work, and the linears and exchanges that all pieces are made of."""

from dataclasses import dataclass
from typing import NamedTuple

from nvlm_train.planning.rates import ATTENTION_BACKWARD, Machine

KINDS = ("matmul", "attention", "elementwise", "waiting")


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


@dataclass(frozen=True)
class Place:
    """One rank among `tensor` that share each layer. sequence: what lies between the linears is split over them too. context: ranks that
    share each row.

    bandwidth, latency_s: of messages among those of a layer; context_bandwidth, context_latency_s: of a row. Sizes of linears below are the whole model's on the undivided side and the rank's
    on the divided one.
    """

    machine: Machine
    tensor: int = 1
    sequence: bool = False
    bandwidth: float = 1.0
    latency_s: float = 0.0
    context: int = 1
    context_bandwidth: float = 1.0
    context_latency_s: float = 0.0

    @property
    def slices(self) -> int:
        """Into how many the sequence is cut between the linears."""
        return self.tensor if self.sequence else 1

    def gather(self, rows: int, width: int) -> Cost:
        """All-gather of a tensor that is whole afterwards, or reduce-scatter of one that was; ring algorithm."""
        if self.tensor == 1 or not rows:
            return NOTHING
        sent = rows * width * self.machine.number_bytes * (self.tensor - 1) / self.tensor
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

    def matmul(self, rows: int, columns: int, inner: int) -> Cost:
        return Cost(matmul=self.machine.matmul(rows, columns, inner), calls=1, flops=2.0 * rows * columns * inner)

    def attention(self, flops: float) -> Pass:
        """flops: of the forward."""
        backward = ATTENTION_BACKWARD * flops
        return Pass(Cost(attention=self.machine.attention(flops), calls=1, flops=flops),
                    Cost(attention=self.machine.attention(backward), calls=3, flops=backward))

    def moves(self, numbers: float, calls: int) -> Cost:
        """`calls` kernels that together read and write so many numbers of the compute dtype."""
        return Cost(elementwise=self.machine.moved(numbers * self.machine.number_bytes), calls=calls)

    def linear(self, rows: int, inner: int, columns: int, own: bool, below: bool) -> Pass:
        """A linear without messages. own: its weight is trained; below: its input needs a gradient."""
        backward = NOTHING
        if own:
            added = Cost(elementwise=self.machine.moved(self.machine.accumulate_bytes * inner * columns), calls=1)
            backward += self.matmul(columns, inner, rows) + added
        if below:
            backward += self.matmul(rows, inner, columns)
        return Pass(self.matmul(rows, columns, inner), backward)

    def column(self, rows: int, inner: int, columns: int, own: bool, below: bool) -> Pass:
        """A linear whose columns are divided. Forward gathers its input where that is sliced; backward sums its input's gradient
        while the weight's is made, and gathers the input once more while the input's is made (Megatron's overlap)."""
        done = self.linear(rows, inner, columns, own, below)
        forward = self.gather(rows, inner) if self.sequence else NOTHING
        backward = NOTHING
        if below:
            message = self.gather(rows, inner) if self.sequence else self.reduce(rows, inner)
            backward += beside(message, self.matmul(columns, inner, rows) if own else NOTHING)
        if own and self.sequence:
            backward += beside(self.gather(rows, inner), self.matmul(rows, inner, columns) if below else NOTHING)
        return Pass(forward + done.forward, done.backward + backward)

    def row(self, rows: int, inner: int, columns: int, own: bool, below: bool) -> Pass:
        """A linear whose input's width is divided: its outputs are summed over the group, or summed and sliced."""
        done = self.linear(rows, inner, columns, own, below)
        message = self.gather(rows, columns) if self.sequence else self.reduce(rows, columns)
        gathered = message if self.sequence and (own or below) else NOTHING
        return Pass(done.forward + message, gathered + done.backward)


def beside(message: Cost, work: Cost) -> Cost:
    """A message that travels while `work` is done: only what is left of it is waited for."""
    return Cost(waiting=max(0.0, message.waiting - work.matmul), calls=message.calls, sent=message.sent)
