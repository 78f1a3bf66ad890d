"""What all ranks measured, joined to the figures of the page: profile/STAGE/summary.json.

    stage, steps (numbers of the profiled ones), ranks, device, peak (FLOP/s of one; null on a CPU), on_gpu, torch
    step_s                      seconds of a profiled step, mean over steps and ranks
    steps_s                     of each profiled step, the slowest rank's
    others                      unprofiled steps before them, without the first: {"steps", "median_s", "p95_s"}; null if there is none
    components                  component -> {"seconds" of a step, mean over ranks; "share" of the step; "phases": phase ->
                                seconds; "flops": useful operations of a step, all ranks together; "flops_per_s" of each device
                                while it is at this component; "mfu" of this; both null where nothing useful is counted, mfu on a
                                CPU}
    flops, flops_per_s, mfu     of the whole step
    hidden_s                    communication behind other work, in no component's seconds
    operations                  the longest of the first rank: name, component, phase, calls and seconds of a step
    per_rank                    each rank's component -> seconds of a step
    notes                       what could not be measured or written
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from nvlm_train.model.accounting import mfu
from nvlm_train.training.profile.parts import LABELS
from nvlm_train.training.profile.session import Measured


@dataclass(frozen=True)
class Share:
    """What a rank sends. flops: useful operations of all profiled steps by part, of a rank that reads data; failed: why there
    is no `measured`."""

    measured: Measured | None
    flops: Mapping[str, int] | None = None
    failed: str | None = None


def summary(stage: str, steps: Sequence[int], shares: Sequence[Share], device: str | None, peak: float | None,
            others_s: Sequence[float]) -> dict:
    """shares: of all ranks in their order; others_s: seconds of the steps that were not profiled. Raises ValueError if no
    rank measured anything."""
    notes = [f"rank {rank}: {note}" for rank, share in enumerate(shares)
             for note in ((share.failed,) if share.measured is None else share.measured.notes)]
    known = [(rank, share.measured) for rank, share in enumerate(shares) if share.measured is not None]
    if not known:
        raise ValueError("; ".join(notes))
    work = Counter()
    for share in shares:
        work.update(share.flops or {})
    count, ranks, devices = len(steps), [measured for _, measured in known], len(shares)
    if len(known) < devices:    # the work is that of all ranks, the time is not: no rate can be told
        work, notes = Counter(), [*notes, "rates are left out, for want of all ranks' times"]
    if device and not ranks[0].on_gpu:
        notes.append("the profiler saw no work of the GPU (it may lack the permission): these are times of the host")
    step_s = statistics.mean(sum(measured.steps_s) for measured in ranks) / count
    total = sum(work.values()) / count
    return {
        "stage": stage, "steps": list(steps), "ranks": devices, "device": device, "peak": peak, "on_gpu": ranks[0].on_gpu,
        "torch": torch.__version__, "step_s": step_s,
        "steps_s": [max(each) for each in zip(*(measured.steps_s for measured in ranks), strict=True)],
        "others": _others(others_s), "components": _components(ranks, work, count, devices, step_s, peak),
        "flops": total, "flops_per_s": total / step_s / devices if total else None,
        "mfu": mfu(total, step_s, devices, peak) if total else None,
        "hidden_s": statistics.mean(measured.hidden_s for measured in ranks) / count,
        "operations": [{**row, "calls": row["calls"] / count, "seconds": row["seconds"] / count} for row in ranks[0].operations],
        "per_rank": [{"rank": rank, **{name: sum(phases.values()) / count for name, phases in measured.components.items()}}
                     for rank, measured in known],
        "notes": notes,
    }


def _components(ranks: Sequence[Measured], work: Mapping[str, int], count: int, devices: int, step_s: float,
                peak: float | None) -> dict:
    found = {}
    for name in LABELS:
        phases: Counter = Counter()
        for measured in ranks:
            phases.update(measured.components.get(name, {}))
        flops = work.get(name, 0) / count
        seconds = sum(phases.values()) / count / len(ranks)
        if not (seconds or flops):
            continue
        rated = flops and seconds
        found[name] = {
            "seconds": seconds, "share": seconds / step_s,
            "phases": {phase: total / count / len(ranks) for phase, total in sorted(phases.items()) if phase},
            "flops": flops, "flops_per_s": flops / seconds / devices if rated else None,
            "mfu": mfu(flops, seconds, devices, peak) if rated else None}
    return found


def _others(seconds: Sequence[float]) -> dict | None:
    if not seconds:
        return None
    ordered = sorted(seconds)
    return {"steps": len(ordered), "median_s": statistics.median(ordered), "p95_s": ordered[int(0.95 * (len(ordered) - 1) + 0.5)]}
