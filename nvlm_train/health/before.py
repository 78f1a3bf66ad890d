"""Before step 0 of every job of several processes: what cannot work is refused, and named, while it costs seconds.

Two questions to every rank and a bell. Nothing here is a collective, so a rank that is missing is named too.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from nvlm_train.config.schema import Run
from nvlm_train.doctor import PROBLEM, Finding
from nvlm_train.errors import ConfigError
from nvlm_train.health import clocks
from nvlm_train.health.comparing import compare
from nvlm_train.health.facts import Facts, facts_of
from nvlm_train.health.roll import Roll
from nvlm_train.health.shared import Nonce, inputs_of, sees, unlike, unshared
from nvlm_train.parallel.job import Job

log = logging.getLogger(__name__)


def examine(job: Job, roll: Roll, runs: Sequence[Run], device: torch.device) -> tuple[list[Facts], list[Finding], list[clocks.Offset]]:
    """(every rank's facts, what is wrong or remarkable, every rank's clock), the same on every rank.

    runs: whose files are looked at; none: only the processes. Raises JobError that names the ranks which do not answer.
    """
    run_dir = Path(runs[0].run.dir) if runs else None
    with Nonce(run_dir or Path(), writes=run_dir is not None and job.place.rank == 0) as nonce:
        answers = roll.call("who are you", {"facts": asdict(facts_of(job.place, device)), "nonce": nonce.name})
        ranks = [Facts(**answer["facts"]) for answer in answers]
        seen = run_dir is None or sees(run_dir, answers[0]["nonce"])
        looked = roll.call("what do you see", {"run_dir": seen, "inputs": inputs_of(runs)})
    found = compare(ranks)
    if run_dir:
        found += unshared(run_dir, ranks, [answer["run_dir"] for answer in looked])
        found += unlike(ranks, [answer["inputs"] for answer in looked])
    offsets = clocks.measure(roll, job.place.rank)
    return ranks, found, offsets


def check(job: Job, runs: Sequence[Run], device: torch.device, limit_s: float) -> list[Facts]:
    """Every rank's facts, once the job can work. limit_s: for the slowest rank to get here.

    Raises ConfigError with everything that cannot work, on every rank; what is only remarkable is logged. Raises JobError when a rank
    does not answer.
    """
    ranks, found, offsets = examine(job, Roll(job, limit_s), runs, device)
    if problems := [f"{finding.name}: {finding.text}" for finding in found if finding.status == PROBLEM]:
        raise ConfigError(problems)
    if job.place.rank == 0:
        text, worrying = clocks.describe(offsets, ranks)
        remarks = [f"{finding.name} {finding.text}" for finding in found] + ([f"clocks: {text}"] if worrying else [])
        for remark in remarks:
            log.warning("%s", remark)
    return ranks
