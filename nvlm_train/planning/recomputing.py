"""What a layout that does not fit may compute again in the backward pass instead of keeping it: the fastest choice first."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from nvlm_train.config.recompute import DECODER, PARTS, recomputed_parts
from nvlm_train.config.schema import Run
from nvlm_train.planning.plan import Plan

_LAYERS = (*DECODER, "cross_attention")     # what model.recompute=full has in it
FULL = "full"


def keeping_all(run: Run) -> Run:
    return _again(run, frozenset())


def leaner(plan: Plan) -> Iterator[Run]:
    """Of a layout without recomputation: its runs that compute something again, fastest first, as far as the first rank that did not fit
    then does. Nothing, after two looks, where neither all layers nor all parts would do."""
    added = _added(plan)
    parts = [part for part in added if part != FULL]
    inside = [part for part in parts if part in _LAYERS]
    outside = [part for part in parts if part not in _LAYERS]
    choices = [(*some, *others) for some in (*_subsets(inside), (FULL,)) for others in _subsets(outside)]

    def fits(choice: tuple[str, ...]) -> bool:
        return replace(plan, run=_again(plan.run, frozenset(choice))).fits_on(plan.too_full_for_sure)

    if any(fits(most) for most in {(FULL, *outside), tuple(parts)}):
        ordered = sorted(filter(None, choices), key=lambda choice: (sum(added[part] for part in choice), len(choice)))
        yield from (_again(plan.run, frozenset(choice)) for choice in ordered if fits(choice))


def fitting(plan: Plan) -> Plan | None:
    """The layout with what must be computed again for it to fit, the fastest such choice; None where none does."""
    bare = replace(plan, run=keeping_all(plan.run))
    if bare.fits_surely:
        return bare
    return next((other for other in (replace(plan, run=run) for run in leaner(bare)) if other.fits_surely), None)


def _again(run: Run, choice: frozenset[str]) -> Run:
    """Attention alone has a setting that is older than the list of parts."""
    what = FULL if FULL in choice else "selective" if "attention" in choice else "none"
    parts = tuple(part for part in PARTS if part in choice and part != "attention")
    return replace(run, model=replace(run.model, recompute=what, recompute_parts=parts))


def _subsets(parts: list[str]) -> list[tuple[str, ...]]:
    return [some for count in range(len(parts) + 1) for some in combinations(parts, count)]


def _added(plan: Plan) -> dict[str, float]:
    """Seconds of a mean stage that each possible part, or all layers, take once more for a row full of tiles; the first stage's if they
    are before the layers. They add up: parts have nothing in common."""
    run, bench = plan.run, plan.bench
    on, row = bench.fabric(run), max(plan.step.rows, key=lambda row: row.tiles)

    def seconds(choice: frozenset[str]) -> float:
        costs = bench.memo.costs(_again(run, choice), on, row)
        return costs.before.backward.work + costs.between(range(run.model.language.layers)).backward.work / run.layout.pipeline

    kept = seconds(frozenset())
    possible = [part for part in PARTS if not any(recomputed_parts(replace(run, model=replace(run.model, recompute_parts=(part,)))))]
    added = {part: seconds(frozenset((part,))) - kept for part in (*possible, FULL)}
    return {part: more for part, more in added.items() if more > 0}
