"""How far the ranks' clocks are apart: logs of different nodes, and the times of files, are compared by people and programs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from nvlm_train.health.facts import Facts
from nvlm_train.health.roll import Roll

WORRYING_S = 1.0


@dataclass(frozen=True)
class Offset:
    """A rank's clock less rank 0's, in seconds, give or take `error`: half the round trip in which it was read."""

    rank: int
    seconds: float
    error: float


def measure(roll: Roll, rank: int) -> list[Offset]:
    """Every rank's offset. Rank 0 rings, all answer with their time, and rank 0 notes when it had an answer: the clock was read in
    between, in the middle if both ways took alike."""
    roll.call("at the bell", None)      # all are here: the next question is answered at once
    rung = roll.ring(rank, time.time)
    return [Offset(number, there - (began + ended) / 2, (ended - began) / 2) for number, (began, there, ended) in enumerate(rung)]


def worst_pair(offsets: Sequence[Offset]) -> tuple[Offset, Offset]:
    """(the clock most ahead, the clock most behind)."""
    return max(offsets, key=lambda offset: offset.seconds), min(offsets, key=lambda offset: offset.seconds)


def describe(offsets: Sequence[Offset], ranks: Sequence[Facts]) -> tuple[str, bool]:
    """(a sentence on the worst pair, whether it is worrying beyond what the measurement cannot tell)."""
    ahead, behind = worst_pair(offsets)
    apart, error = ahead.seconds - behind.seconds, ahead.error + behind.error
    worrying = apart - error > WORRYING_S
    pair = f"{ranks[ahead.rank].name} is ahead of {ranks[behind.rank].name} by {apart:.3f} s, give or take {error:.3f} s"
    return pair + (": run a time service (chrony, ntpd) on every node" if worrying else ""), worrying
