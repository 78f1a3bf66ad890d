"""How long a pipeline takes for its rows: the order in which Megatron's schedules do forwards and backwards, played through.

Stage s of p holds the pieces s, s + p, s + 2p, … of the model (one piece, unless stages are virtual). Uneven pieces and rows are
taken as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

FORWARD, BACKWARD = 0, 1
Work = tuple[int, int, int]     # (FORWARD or BACKWARD, piece, row)


class Span(NamedTuple):
    """One work of a stage, and when it is at it, in seconds from the start of the step; sending what it made comes after `end`."""

    kind: int
    piece: int
    row: int
    begin: float
    end: float


@dataclass(frozen=True)
class Played:
    """seconds: until the last stage is done; busy: of each stage, seconds with something to do; spans: what, in its order."""

    seconds: float
    busy: tuple[float, ...]
    spans: tuple[tuple[Span, ...], ...]

    @property
    def bubble(self) -> float:
        """Share of all stages' time in which they have nothing to do."""
        return 1 - sum(self.busy) / (len(self.busy) * self.seconds) if self.seconds else 0.0

    @property
    def balance(self) -> float:
        """A mean stage's work over the busiest one's: 1 if all have equally much to do. What it lacks no number of rows makes up for."""
        return sum(self.busy) / len(self.busy) / max(self.busy) if max(self.busy) else 1.0


def play(forward: Sequence[Sequence[float]], backward: Sequence[Sequence[float]], stages: int, message_s: float = 0.0) -> Played:
    """forward, backward: [pieces][rows] seconds. message_s: seconds in which what a piece made reaches the next; sender and
    receiver wait for it.

    Raises ValueError where rows do not fill the rounds of an interleaved schedule.
    """
    pieces, rows = len(forward), len(forward[0])
    durations = (forward, backward)
    orders = [list(order(stage, stages, pieces // stages, rows)) for stage in range(stages)]
    clock, busy, at = [0.0] * stages, [0.0] * stages, [0] * stages
    done: dict[Work, float] = {}
    spans: list[list[Span]] = [[] for _ in range(stages)]
    left = sum(map(len, orders))
    while left:
        before = left
        for stage in range(stages):
            while at[stage] < len(orders[stage]):
                work = orders[stage][at[stage]]
                ready = _ready(work, pieces, done)
                if ready is None:
                    break
                kind, piece, row = work
                seconds = durations[kind][piece][row]
                sends = message_s if stages > 1 and piece != (pieces - 1 if kind == FORWARD else 0) else 0.0
                begin = max(clock[stage], ready)
                spans[stage].append(Span(kind, piece, row, begin, begin + seconds))
                clock[stage] = begin + seconds + sends
                busy[stage] += seconds
                done[work] = clock[stage]
                at[stage] += 1
                left -= 1
        if left == before:
            raise ValueError(f"{rows} rows over {stages} stages of {pieces // stages} pieces wait for each other")
    return Played(max(clock), tuple(busy), tuple(map(tuple, spans)))


def _ready(work: Work, pieces: int, done: dict[Work, float]) -> float | None:
    """When what a work needs has arrived; None while it is not done."""
    kind, piece, row = work
    if kind == FORWARD:
        return 0.0 if piece == 0 else done.get((FORWARD, piece - 1, row))
    return done.get((FORWARD, piece, row) if piece == pieces - 1 else (BACKWARD, piece + 1, row))


def order(stage: int, stages: int, virtual: int, rows: int):
    """The works of one stage in their order: forwards to fill the pipeline, then one forward and one backward in turn, then the
    backwards left. With virtual stages, rounds of `stages` rows go through each piece."""
    total = rows * virtual
    if virtual == 1:
        ahead = min(stages - stage - 1, rows)
    else:
        if rows % stages:
            raise ValueError(f"{rows} rows are no whole rounds of {stages} stages")
        ahead = min((stages - stage - 1) * 2 + (virtual - 1) * stages, total)

    def work(kind: int, number: int) -> Work:
        around, place = divmod(number, stages * virtual)
        chunk = place // stages if virtual > 1 else 0
        row = around * stages + place % stages if virtual > 1 else number
        if kind == BACKWARD and virtual > 1:
            chunk = virtual - 1 - chunk
        return kind, chunk * stages + stage, row

    for number in range(ahead):
        yield work(FORWARD, number)
    for number in range(total - ahead):
        yield work(FORWARD, number + ahead)
        yield work(BACKWARD, number)
    for number in range(total - ahead, total):
        yield work(BACKWARD, number)
