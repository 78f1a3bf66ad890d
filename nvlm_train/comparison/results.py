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
    first, *others = designs
    found = {first.name: _design(first, of[first.name])}
    found |= {design.name: _design(design, of[design.name], of[first.name]) for design in others}
    return {
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seeds": list(dict.fromkeys(outcome.job.seed for outcome in outcomes)),
        "processes": processes,
        "designs": found,
        "same": redact(shared_settings(designs)),
        "differing": [asdict(difference) for difference in differences(designs)],
        "failed": [{"design": outcome.job.design.name, "seed": outcome.job.seed, "reason": redact(outcome.failure)}
                   for outcome in outcomes if outcome.failure is not None],
    }


def _design(design: Design, outcomes: Sequence[Outcome], of_first: Sequence[Outcome] = ()) -> dict:
    """of_first: outcomes of the design that this one is set against."""
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
        "tasks": _tasks(_by_seed(outcomes), _by_seed(of_first)),
        "runs": {str(outcome.job.seed): f"{design.name}/{outcome.job.folder.name}" for outcome in outcomes
                 if outcome.figures is not None},
    }


def _by_seed(outcomes: Sequence[Outcome]) -> dict[int, Mapping[str, Mapping]]:
    """Seed -> task -> figures, of the seeds that were asked."""
    return {outcome.job.seed: outcome.tasks for outcome in outcomes if outcome.counts and outcome.tasks}


def _difference(accuracies: Mapping[int, float], of_first: Mapping[int, float]) -> dict | None:
    """Seed -> accuracy, less the first design's, over the seeds that both have; None if these are fewer than three."""
    seeds = [seed for seed in accuracies if seed in of_first]
    span = paired([accuracies[seed] for seed in seeds], [of_first[seed] for seed in seeds])
    return span and {"mean": statistics.mean(accuracies[seed] - of_first[seed] for seed in seeds), "low": span.low, "high": span.high}


def _stage(seeds: Sequence[StageFigures]) -> dict:
    """Means over the seeds, of the figures that are known for all of them."""
    means = {}
    for figure in fields(StageFigures):
        values = [getattr(each, figure.name) for each in seeds]
        means[figure.name] = statistics.mean(values) if values and None not in values else None
    return means


def _tasks(seeds: Mapping[int, Mapping[str, Mapping]], of_first: Mapping[int, Mapping[str, Mapping]]) -> dict:
    """Task -> its mean accuracy over the seeds with a 95 % interval, and what is right without seeing and without thinking."""
    found = {}
    for task in next(iter(seeds.values()), ()):
        each = {seed: scores[task] for seed, scores in seeds.items()}
        accuracies = {seed: marks["accuracy"] for seed, marks in each.items()}
        first = {seed: scores[task]["accuracy"] for seed, scores in of_first.items() if task in scores}
        blind, marks = [marks["blanked"] for marks in each.values()], next(iter(each.values()))
        span = interval(list(accuracies.values()), marks["questions"])
        found[task] = {
            "accuracy": statistics.mean(accuracies.values()), "low": span.low, "high": span.high, "interval": span.method,
            "blanked": statistics.mean(blind) if None not in blind else None, "majority": marks["majority"],
            "questions": marks["questions"], "by_seed": list(accuracies.values()), "less_first": _difference(accuracies, first),
        }
    return found
