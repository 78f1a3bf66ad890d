"""`run.profile`: which steps of a stage are profiled (see `rules`)."""

import re
from collections.abc import Iterator

from nvlm_train.config.schema import Run

MOST = 10       # steps: a trace of more is too large to be looked at


def profiled_steps(text: str) -> range:
    """The steps that 5 or 5-7 means, counted from 1. Raises ValueError for anything else."""
    found = re.fullmatch(r"([1-9][0-9]{0,11})(?:-([1-9][0-9]{0,11}))?", text)
    if not found:
        raise ValueError("write one step (5) or the first and the last (5-7), counted from 1")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise ValueError(f"the last step, {last}, is before the first, {first}")
    if last - first >= MOST:
        raise ValueError(f"these are {last - first + 1} steps, and at most {MOST} are profiled: a longer trace is too large to "
                         "be looked at")
    return range(first, last + 1)


def profile(run: Run) -> Iterator[str]:
    if run.run.profile is None:
        return
    try:
        last = profiled_steps(run.run.profile)[-1]
    except ValueError as error:
        yield f"run.profile={run.run.profile}: {error}"
        return
    if last > run.train.steps:
        yield f"run.profile={run.run.profile}: the stage has train.steps={run.train.steps}; name steps that it has"


PROFILE_RULES = (profile,)
