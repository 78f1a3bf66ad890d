"""The watching thread of a rank: tells the others that it lives, and ends the job when nobody goes on any more.

Ranks learn of each other through the job's store, never through a collective, which is what hangs. When a rank has not beaten for too
long (`Heart.limit`), every rank writes its stacks, the one that holds the others up is named, and all end with status HUNG.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

import psutil
import torch.distributed as dist

from nvlm_train.errors import first_line
from nvlm_train.health.facts import Facts, process_of
from nvlm_train.health.heart import Heart
from nvlm_train.health.stacks import in_collective, main_frame, own_line, write_stacks
from nvlm_train.health.verdict import Sign, Verdict, decide
from nvlm_train.health.word import word

HUNG = 76           # exit status, beside 75 of a run that was told to stop
EVERY_S = 2.0       # between two signs of a rank, at most
_LEAVE_S = 10.0     # for a rank to notice by itself that another has failed: NCCL may not

Ending = Callable[[str, int], None]


class Watch:
    """Context manager around the training of a rank.

    store: a connection that nobody else uses. folder: where stacks are written. ending: told (why, exit status) on one rank, before
    the job ends. end_process: os._exit, since no other way leaves a hanging collective.
    """

    def __init__(self, store: dist.Store, ranks: Sequence[Facts], rank: int, heart: Heart, hang_s: float, folder: Path, ending: Ending,
                 end_process: Callable[[int], None] = os._exit) -> None:
        self._store, self._ranks, self._rank, self._heart, self._hang_s = store, ranks, rank, heart, hang_s
        self._folder, self._ending, self._end_process = folder, ending, end_process
        self._every = min(EVERY_S, max(0.2, hang_s / 8)) if hang_s else EVERY_S
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._idle, self._seen, self._failed_for = 0.0, -1, 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._closing.set()
        self._thread.join(self._every + 1)
        faulthandler.cancel_dump_traceback_later()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._closing.wait(self._every):
            now = time.monotonic()
            # A process that was stopped as a whole, by Slurm or a person, did not hang meanwhile: long gaps count as short ones.
            self._tick(min(now - last, 2 * self._every))
            last = now

    def _tick(self, ran: float) -> None:
        beat = self._heart.beat
        self._idle = 0.0 if beat.count != self._seen else self._idle + ran
        self._seen = beat.count
        limit = self._heart.limit(self._hang_s)
        if self._hang_s:
            # By a thread of C, into the rank's log: a rank whose interpreter is stuck never comes back here to put this off.
            faulthandler.dump_traceback_later(self._hang_s + self._every)
        hangs = bool(self._hang_s) and self._idle > limit
        try:
            self._store.set(f"sign/{self._rank}", self._sign())
            if not hangs and not self._store.check(["hang"]):
                self._leave_with_others(ran)
                return
        except RuntimeError as error:   # the store itself is gone, or its rank is stopped
            if hangs:
                self._end_alone(error)
            return
        self._end_job()

    @property
    def _settling(self) -> float:
        """Seconds in which every living rank has noticed."""
        return 2 * self._every + 2

    def _sign(self) -> str:
        frame, beat = main_frame(), self._heart.beat
        sign = Sign(beat.count, beat.step, beat.place, in_collective(frame), own_line(frame))
        return json.dumps({**asdict(sign), "time": time.time()})

    # -- others have failed -----------------------------------------------------------------------------------------

    def _leave_with_others(self, ran: float) -> None:
        failure = word(self._store)
        if failure is None or failure.rank == self._rank:
            return
        self._failed_for += ran
        if self._failed_for > _LEAVE_S:
            self._say(f"{failure}; this rank did not notice by itself and ends now")
            self._end_process(1)

    # -- a hang -----------------------------------------------------------------------------------------------------

    def _end_job(self) -> None:
        try:
            self._store.set("hang", "declared")
            problem = self._write_own_stacks()
            self._store.set(f"report/{self._rank}", self._sign())
            self._store.add("reports", 1)
            self._await(lambda: self._store.add("reports", 0) >= len(self._ranks), self._settling)
            if self._store.compare_set("speaker", "", str(self._rank)).decode() == str(self._rank):
                self._speak(problem)
            elif not self._await(lambda: self._store.check(["told"]), self._settling + 5):
                self._say("the rank that was to say who holds the others up did not: look at the stacks")
                self._end_process(HUNG)
            for rank in json.loads(self._store.get("told")):
                # A stopped process takes no SIGTERM, and torchrun would wait 30 s for it: a rank of its host ends it.
                end_if_here(self._ranks[rank], self._ranks[self._rank].host)
        except RuntimeError as error:
            self._end_alone(error)
        self._end_process(HUNG)

    def _write_own_stacks(self) -> str:
        """Returns what kept them from being written, if anything did."""
        try:
            write_stacks(self._folder / f"rank-{self._rank:05d}.txt", f"{self._ranks[self._rank].name}, {self._heart.beat.place}")
        except OSError as error:
            return f" (of rank {self._rank} not: {error})"
        return ""

    def _verdict(self) -> tuple[Verdict, list[int]]:
        """(who holds the others up, ranks that did not report)."""
        signs, silent = {}, {}
        for rank in range(len(self._ranks)):
            reported = self._store.check([f"report/{rank}"])
            key = f"report/{rank}" if reported else f"sign/{rank}"
            said = json.loads(self._store.get(key)) if self._store.check([key]) else None
            at = said.pop("time") if said else time.time()
            if said:
                signs[rank] = Sign(**said)
            if not reported:
                silent[rank] = time.time() - at
        return decide(self._ranks, signs, silent), sorted(silent)

    def _speak(self, problem: str) -> None:
        verdict, silent = self._verdict()
        why = (f"no rank has gone on for {self._idle:.0f} s (run.hang_s={self._hang_s:g}). {verdict.why}. "
               f"Stacks: {self._folder}{problem}. If steps rightly take this long, raise run.hang_s")
        self._say(why)
        self._ending(why, HUNG)
        self._store.set("told", json.dumps(silent))

    def _end_alone(self, error: RuntimeError) -> None:
        """Without the store nobody can be asked: rank 0 or torchrun's first node is the one that is gone."""
        problem = self._write_own_stacks()
        self._say(f"no step for {self._idle:.0f} s, and the job's store does not answer ({first_line(error)}): the node that serves "
                  f"it ({self._ranks[0].host}) is stopped, dead or cut off. Stacks: {self._folder}{problem}")
        self._end_process(HUNG)

    def _await(self, true: Callable[[], bool], limit_s: float) -> bool:
        until = time.monotonic() + limit_s
        while not (there := true()) and time.monotonic() < until:
            time.sleep(0.1)
        return there

    def _say(self, text: str) -> None:
        # Straight to the descriptor: the main thread may hold the stream's lock.
        os.write(sys.stderr.fileno(), f"nvlm (rank {self._rank}): {text}\n".encode())


def end_if_here(rank: Facts, host: str) -> bool:
    """Kill a rank's process if it is on this host, and is still that process and no later one of its number."""
    process = process_of(rank) if rank.host == host else None
    try:
        if process is not None:
            process.kill()
    except psutil.Error:
        return False
    return process is not None
