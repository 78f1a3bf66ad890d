"""This process as a member of its job: it joins, is checked with the others, is watched, and says which rank ended the job.

A process alone is a member too, of a job in which there is nothing to check, watch or name.
"""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import torch.distributed as dist

from nvlm_train.config.schema import Run, RunSettings
from nvlm_train.errors import JobError, NvlmError, first_line
from nvlm_train.health.before import check
from nvlm_train.health.facts import Facts, lives
from nvlm_train.health.heart import Heart
from nvlm_train.health.watch import EVERY_S, Ending, Watch
from nvlm_train.health.word import await_word, failure_of, from_peers, leave_word, words_of
from nvlm_train.parallel import groups
from nvlm_train.parallel.device import find_device
from nvlm_train.parallel.job import JOIN_LIMIT_S, join
from nvlm_train.training.preemption import Preempted

_WORD_S = 2 * EVERY_S + 1   # until a rank that died without a word is noticed: its signs stop
_LEAVING_S = 15.0           # to look for word, write it down and close what is open, once a neighbour has died

log = logging.getLogger(__name__)


class Member:
    """Context manager around a job. `heart` is for the training loop to beat."""

    def __init__(self, settings: RunSettings) -> None:
        self._settings, self._held = settings, ExitStack()
        self._limit = min(settings.timeout_s, JOIN_LIMIT_S)
        self._job = join(settings.timeout_s)
        self._words = words_of(self._job)
        self._ranks: list[Facts] = []
        self.heart = Heart()

    def __enter__(self) -> Self:
        self._held.enter_context(self.naming())
        return self

    def __exit__(self, *error) -> None:
        self._held.__exit__(*error)

    def begin(self, runs: Sequence[Run], ending: Ending) -> None:
        """Check the job before its first collective, open the process group, and watch from now on.

        ending: told (why, exit status) on one rank when the job is ended because it hangs. Raises ConfigError when the ranks do not fit
        together, JobError when some do not answer.
        """
        place, settings = self._job.place, self._settings
        if place.world == 1:
            return
        device = find_device(settings.device)
        self._ranks = check(self._job, runs, device, self._limit)
        if place.rank == 0:
            log.info("%d processes on %d nodes fit together; a collective may take %d s (run.timeout_s), a step %s",
                     place.world, len({rank.host for rank in self._ranks}), settings.timeout_s,
                     f"{settings.hang_s:g} s (run.hang_s)" if settings.hang_s else "as long as it likes (run.hang_s=0)")
        stacks = Path(settings.dir) / "stacks" / time.strftime("%Y%m%d-%H%M%S", time.gmtime(self._ranks[0].born))
        store = dist.PrefixStore("health", self._job.second_store(max(5.0, settings.hang_s)))
        self._held.enter_context(Watch(store, self._ranks, place.rank, self.heart, settings.hang_s, stacks, ending))
        groups.start(device, settings.timeout_s, self._job)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """An error on the way out becomes the job's: the first rank leaves word, the others say its word instead of their noise."""
        try:
            yield
        except (Preempted, KeyboardInterrupt):
            raise
        except BaseException as error:
            if self._job.place.world == 1 or getattr(error, "named", False):
                raise
            blamed = self._blame(error)
            blamed.named = True     # an outer `naming` passes it on
            if blamed is error:
                raise
            raise blamed from error

    def _blame(self, error: BaseException) -> BaseException:
        """The error to raise instead: the same one on the rank that failed, and where all ranks raise alike; else JobError."""
        if from_peers(error):
            _hold_off_signals()
            found = self._gone() or await_word(self._words, _WORD_S) or self._gone() or self._silent()
            said = "" if found else f" ({first_line(error)[:300]})"
            return JobError(f"{found or 'a collective failed, and no rank said why'}. This rank ends with it{said}")
        mine = failure_of(self._job.place.rank, self.heart.beat.place, error)
        first = leave_word(self._words, mine)
        if isinstance(error, NvlmError):
            error.said_by_another = first.rank != mine.rank and first.error == mine.error
            return error
        if isinstance(error, SystemExit):
            return JobError(str(mine))
        log.error("%s", mine)
        return error

    def _gone(self) -> str:
        """Which ranks of this host have no process any more; "" if all have."""
        here = self._ranks[self._job.place.rank].host if self._ranks else ""
        gone = [rank for rank in self._ranks if rank.host == here and not lives(rank)]
        return "; ".join(f"{rank.name}, process {rank.pid}, is gone without a word: killed (out of memory?), or it crashed" for rank in gone)

    def _silent(self) -> str:
        """Which ranks, on any host, give no sign any more; "" if all do, or if the store went with them."""
        try:
            signs = [self._words.get(key) if self._words.check([key := f"sign/{rank.rank}"]) else None for rank in self._ranks]
        except RuntimeError:
            return ""
        ages = [time.time() - json.loads(sign)["time"] if sign else 0.0 for sign in signs]
        return "; ".join(f"{rank.name}, process {rank.pid}, has not been heard of for {age:.0f} s: killed, stopped or cut off"
                         for rank, age in zip(self._ranks, ages, strict=True) if age > _WORD_S)


def _hold_off_signals() -> None:
    """torchrun sends SIGTERM a moment after a rank has died: the others must still say which, and end soon by themselves."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end = threading.Timer(_LEAVING_S, os._exit, [1])
        end.daemon = True
        end.start()
