"""Which rank holds the others up: decided from what all of them last said. Pure, the same on every rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nvlm_train.health.facts import Facts
from nvlm_train.health.roll import named


@dataclass(frozen=True)
class Sign:
    """What a rank last said of itself. at: which beat; place: Beat.place; waits: stood in a collective; line: of its Python code."""

    count: int
    step: int
    place: str
    waits: bool
    line: str


@dataclass(frozen=True)
class Verdict:
    """guilty: ranks that hold the others up; why: a sentence that says so, with hosts and lines."""

    guilty: tuple[int, ...]
    why: str


def decide(ranks: Sequence[Facts], signs: Mapping[int, Sign], silent: Mapping[int, float]) -> Verdict:
    """The first of these that tells ranks apart is taken: a rank that says nothing at all any more (stopped, dead, or cut off); one
    that is not in a collective while others wait in one; one that has beaten less often. signs: the last of every rank that said any;
    silent: rank -> seconds since it said anything, of those that no longer do."""
    if silent:
        return Verdict(tuple(sorted(silent)), "; ".join(_gone(ranks[rank], silent[rank], signs.get(rank)) for rank in sorted(silent)))
    here = dict(sorted(signs.items()))
    busy = [rank for rank, sign in here.items() if not sign.waits]
    if busy and len(busy) < len(here):
        return Verdict(tuple(busy), _told(ranks, here, busy, "did not come to the collective in which the others wait"))
    least = min(sign.count for sign in here.values())
    behind = [rank for rank, sign in here.items() if sign.count == least]
    if len(behind) < len(here):
        return Verdict(tuple(behind), _told(ranks, here, behind, "is behind the others" if len(behind) == 1 else "are behind the others"))
    return Verdict((), f"all {len(here)} ranks stand at the same place ({here[0].place}, {here[0].line}), so the network or a device between "
                       "them is likely: the stacks and the drivers' logs may tell")


def _gone(rank: Facts, seconds: float, sign: Sign | None) -> str:
    where = f", last seen {sign.place}, {sign.line}" if sign else ""
    return f"{rank.name}, process {rank.pid}, has not been heard of for {seconds:.0f} s (stopped, killed, or cut off){where}"


def _told(ranks: Sequence[Facts], signs: Mapping[int, Sign], which: Sequence[int], what: str) -> str:
    first = signs[which[0]]
    who = ranks[which[0]].name if len(which) == 1 else f"{named(which)}, the first on {ranks[which[0]].host},"
    return f"{who} {what}: {first.place}, {first.line}"
