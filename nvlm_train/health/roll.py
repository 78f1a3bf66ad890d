"""Calling the roll: what every rank has to say, within a time, through the job's store.

Not a collective: it works before there is a process group, and a rank that does not answer is named instead of waited for.
"""

import datetime
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch.distributed as dist

from nvlm_train.errors import JobError
from nvlm_train.health.word import word, words_of
from nvlm_train.parallel.job import Job

_MARGIN_S = 5.0     # for rank 0 to tell the others that somebody is missing
_PAUSE_S = 0.2      # between two looks, at most


class Roll:
    """The ranks' answers to named questions. Every rank makes one over the same store and asks the same questions in the same order."""

    def __init__(self, job: Job, limit_s: float) -> None:
        self._rank, self._world, self._limit = job.place.rank, job.place.world, limit_s
        self._store, self._words = dist.PrefixStore("roll", job.store), words_of(job)

    def call(self, question: str, mine: Any) -> list:
        """Every rank's answer (anything JSON holds), in rank order, on every rank.

        Raises JobError on every rank that names who did not answer within the limit.
        """
        self._store.set(f"{question}/{self._rank}", json.dumps(mine))
        if self._rank == 0:
            answers, silent = self._collect(question)
            self._store.set(f"{question}/all", json.dumps({"answers": answers, "silent": silent}))
        else:
            told = self._wait(f"{question}/all", self._limit + _MARGIN_S)
            if told is None:
                raise JobError(f"rank 0 did not answer ({question}) within {self._limit:.0f} s: look at its log and its node")
            answers, silent = (json.loads(told)[key] for key in ("answers", "silent"))
        if silent:
            raise JobError(f"{named(silent)} of {self._world} did not answer ({question}) within {self._limit:.0f} s: look at "
                           f"{'its log and its node' if len(silent) == 1 else 'their logs and nodes'}")
        return answers

    def ring(self, rank: int, clock: Callable[[], float]) -> list[tuple[float, float, float]]:
        """(rank 0's clock before, this rank's clock, rank 0's clock after) for every rank, on every rank: one bell, rung by rank 0, and
        each rank's answer read off one by one. Raises JobError as `call` does."""
        if rank:
            self._store.wait(["bell"], datetime.timedelta(seconds=self._limit))     # woken at once, unlike by asking
            self._store.set(f"bell/{rank}", json.dumps(clock()))
            return self.call("clocks", None)[0]
        began, times = clock(), []
        self._store.set("bell", json.dumps(began))
        times.append((began, clock(), clock()))
        for other in range(1, self._world):
            there = self._wait(f"bell/{other}", self._limit)
            times.append((began, began if there is None else json.loads(there), clock()))
        return self.call("clocks", times)[0]

    def _collect(self, question: str) -> tuple[list, list[int]]:
        until = time.monotonic() + self._limit
        texts = [self._wait(f"{question}/{rank}", until - time.monotonic()) for rank in range(self._world)]
        silent = [rank for rank, text in enumerate(texts) if text is None]
        return [None if text is None else json.loads(text) for text in texts], silent

    def _wait(self, key: str, limit_s: float) -> str | None:
        """The text under a key once it is there; None after the limit. Raises JobError if a rank has failed meanwhile and said so.

        Asked again and again: a wait of the store's own would not hear of a failure, and its client warns on stderr when time is up.
        """
        until, pause = time.monotonic() + limit_s, 0.001
        while not self._store.check([key]):
            if (failure := word(self._words)) is not None and failure.rank != self._rank:
                raise JobError(f"{failure}. This rank ends with it")
            if time.monotonic() > until:
                return None
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE_S)
        return self._store.get(key).decode()


def named(ranks: Iterable[int]) -> str:
    """`rank 3`, `ranks 0-7, 9`."""
    ordered = sorted(ranks)
    return f"rank {ordered[0]}" if len(ordered) == 1 else f"ranks {spans(ordered)}"


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers with runs joined: 0-3, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
