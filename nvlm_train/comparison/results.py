"""The comparison as one tree of plain values: what compare.json holds (docs/comparison.md lists its keys), and all that is shown."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from nvlm_train.comparison.designs import Design, Job
from nvlm_train.comparison.fairness import differences, shared_settings
from nvlm_train.comparison.intervals import interval, paired
from nvlm_train.comparison.measure import RunFigures, StageFigures
from nvlm_train.config.dump import redact
from nvlm_train.model.accounting import parameters


@dataclass(frozen=True)
class Outcome:
    """What became of a job. figures: None if it never began; tasks: task -> figures (see `asking`), None if not asked;
    failure: what went wrong."""

    job: Job
    figures: RunFigures | None = None
    tasks: Mapping[str, Mapping] | None = None
    failure: str | None = None

    @property
    def counts(self) -> bool:
        """A training that broke off has figures of another length of training: they are in no mean."""
        return self.failure is None and self.figures is not None


def results(designs: Sequence[Design], outcomes: Sequence[Outcome], processes: int) -> dict:
    """The whole tree."""
    of = {design.name: [outcome for outcome in outcomes if outcome.job.design.name == design.name] for design in designs}
    found = {design.name: _design(design, of[design.name]) for design in designs}
    first = designs[0].name
    for name in found:
        for task, marks in found[name]["tasks"].items():
            marks["less_first"] = None if name == first else _difference(of[name], of[first], task)
    return {
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seeds": list(dict.fromkeys(outcome.job.seed for outcome in outcomes)),
        "processes": processes,
        "designs": found,
        "same": redact(shared_settings(designs)),
        "differing": [asdict(difference) for difference in differences(designs)],
        "failed": [{"design": outcome.job.design.name, "seed": outcome.job.seed, "reason": outcome.failure}
                   for outcome in outcomes if outcome.failure is not None],
    }


def _design(design: Design, outcomes: Sequence[Outcome]) -> dict:
    run = design.runs[-1]
    counted = [outcome for outcome in outcomes if outcome.counts]
    sizes = parameters(run.model)
    return {
        "recipe": run.recipe, "architecture": run.model.architecture, "words": redact(design.words),
        "parameters": {**asdict(sizes), "total": sizes.total},
        "stages": {each.stage: _stage([outcome.figures.stages[each.stage] for outcome in counted
                                       if each.stage in outcome.figures.stages]) for each in design.runs},
        "peak_memory_gib": max((outcome.figures.peak_memory_gib for outcome in counted
                                if outcome.figures.peak_memory_gib is not None), default=None),
        "tasks": _tasks([outcome.tasks for outcome in counted if outcome.tasks]),
        "runs": {str(outcome.job.seed): f"{design.name}/{outcome.job.folder.name}" for outcome in outcomes
                 if outcome.figures is not None},
    }


def _difference(of: Sequence[Outcome], of_first: Sequence[Outcome], task: str) -> dict | None:
    """A design's accuracy less the first design's, over the seeds that both were asked under; None if these are fewer than three."""
    own, first = ({outcome.job.seed: outcome.tasks[task]["accuracy"] for outcome in each
                   if outcome.counts and outcome.tasks and task in outcome.tasks} for each in (of, of_first))
    seeds = [seed for seed in own if seed in first]
    span = paired([own[seed] for seed in seeds], [first[seed] for seed in seeds])
    return span and {"mean": statistics.mean(own[seed] - first[seed] for seed in seeds), "low": span.low, "high": span.high}


def _stage(seeds: Sequence[StageFigures]) -> dict:
    """Means over the seeds, of the figures that are known for all of them."""
    means = {}
    for figure in fields(StageFigures):
        values = [getattr(each, figure.name) for each in seeds]
        means[figure.name] = statistics.mean(values) if values and None not in values else None
    return means


def _tasks(seeds: Sequence[Mapping[str, Mapping]]) -> dict:
    """Task -> its mean accuracy over the seeds with a 95 % interval, and what is right without seeing and without thinking."""
    found = {}
    for task in seeds[0] if seeds else ():
        each = [scores[task] for scores in seeds]
        accuracies, questions = [marks["accuracy"] for marks in each], each[0]["questions"]
        span = interval(accuracies, questions)
        blind = [marks["blanked"] for marks in each]
        found[task] = {
            "accuracy": statistics.mean(accuracies), "low": span.low, "high": span.high, "interval": span.method,
            "blanked": statistics.mean(blind) if None not in blind else None, "majority": each[0]["majority"],
            "questions": questions, "by_seed": accuracies,
        }
    return found
