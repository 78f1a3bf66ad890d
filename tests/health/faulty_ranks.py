"""`nvlm train` whose rank 1 goes wrong in one of these ways; run under torchrun by test_jobs.py.

    faulty_ranks.py KIND train key=value …
"""

import ctypes
import dataclasses
import os
import signal
import sys
import time

from nvlm_train import cli
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.health import before

STEP = 3


def at_step(fault) -> None:
    """`fault()` instead of the third step of rank 1."""
    real, done = MegatronEngine.train_step, [0]

    def train_step(self, batch, lr):
        done[0] += 1
        if done[0] == STEP and self.groups.rank == 1:
            fault()
        return real(self, batch, lr)

    MegatronEngine.train_step = train_step


def boom() -> None:
    raise ValueError("boom\nand more")


def other_version() -> None:
    real = before.facts_of

    def facts_of(place, device):
        facts = real(place, device)
        return dataclasses.replace(facts, versions={**facts.versions, "megatron-core": "0.15.0"}) if place.rank == 1 else facts

    before.facts_of = facts_of


FAULTS = {
    "none": lambda: None,
    "raises": lambda: at_step(boom),
    "leaves": lambda: at_step(lambda: sys.exit(0)),
    "dies": lambda: at_step(lambda: os._exit(0)),
    "killed": lambda: at_step(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "sleeps": lambda: at_step(lambda: time.sleep(600)),
    # Through PyDLL the interpreter's lock is kept: no thread of Python runs any more, the watching one neither.
    "locks": lambda: at_step(lambda: ctypes.PyDLL(None).sleep(600)),
    "version": other_version,
    "elsewhere": lambda: sys.argv.append(f"run.dir={sys.argv[-1].removeprefix('run.dir=')}-of-rank-1") if os.environ["RANK"] == "1" else None,
}


if __name__ == "__main__":
    FAULTS[sys.argv.pop(1)]()
    sys.exit(cli.main(sys.argv[1:]))
