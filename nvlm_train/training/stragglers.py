"""Who is slow. All ranks wait for the slowest one wherever they exchange something, so only what a rank does between such places
tells it from the others."""

from collections.abc import Sequence
from statistics import median_low

from nvlm_train.training.recent import Recent


class Stragglers:
    """Compares what every rank worked in the last steps. hosts: the machine of each rank, in rank order."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = hosts
        self._steps = Recent()      # (work_s, step_s)

    def add(self, work_s: Sequence[float], step_s: float) -> dict:
        """Fields of the step's row (see `metrics`). work_s: of each rank in this step, in rank order; step_s: the whole step."""
        self._steps.append((work_s, step_s))
        if len(work_s) < 2:
            return {"slowest_rank": None, "slowest_host": None, "straggler_share": 0.0}
        worked = [sum(step[rank] for step, _ in self._steps) for rank in range(len(work_s))]
        slowest = max(range(len(worked)), key=worked.__getitem__)
        lost = worked[slowest] - median_low(worked)
        return {"slowest_rank": slowest, "slowest_host": self._hosts[slowest],
                "straggler_share": min(1.0, lost / sum(seconds for _, seconds in self._steps))}
