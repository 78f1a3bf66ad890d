"""Other layouts of a stage, tried on the same cluster: the fastest that fit, and why the others do not."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

from nvlm_train.config import rules
from nvlm_train.config.schema import Layout, Run
from nvlm_train.model.parameters import rank_parameters, trained_names
from nvlm_train.planning.memory import moment_bytes
from nvlm_train.planning.plan import Bench, Plan
from nvlm_train.planning.recomputing import keeping_all, leaner

PIPELINES, VIRTUAL = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16), (1, 2)
SHOWN = 6           # proposals, each with another tensor or pipeline size
_ROW_STEP = 256     # tokens that a proposed row is a multiple of


@dataclass(frozen=True)
class Found:
    """best: fastest first. refused: sentence -> how many layouts it ruled out. tried: layouts looked at."""

    best: tuple[Plan, ...]
    refused: dict[str, int]
    tried: int


def search(run: Run, bench: Bench) -> Found:
    """Splits of the layers first, at the run's own rows; then other rows for the best of them."""
    refused: Counter[str] = Counter()
    possible = list(_possible(run, bench, refused))
    splits = _fastest(possible, bench, refused, SHOWN)
    rows = [other for plan in splits for other in _other_rows(plan, refused)]
    best = _fastest([plan.run for plan in splits] + rows, bench, refused, SHOWN)
    return Found(tuple(best), dict(refused), len(possible) + len(rows) + sum(refused.values()))


def _possible(run: Run, bench: Bench, refused: Counter) -> Iterator[Run]:
    """Every split that the rules and the cluster allow, without recomputation; where parts were measured, with what they were measured
    with."""
    world, per_node = bench.cluster.world, bench.cluster.per_node
    measured = bench.memo.measured is not None      # with one way of sharing out a layer
    run = run if measured else keeping_all(run)
    for tensor in (run.layout.tensor,) if measured else (1, 2, 4, 8, 16):
        if tensor > per_node:
            if tensor <= world:
                refused[f"layout.tensor of more than the {per_node} GPUs of a node"] += 1
            continue
        context = run.layout.context
        for pipeline in (p for p in PIPELINES if p * tensor * context <= world):
            if world % (tensor * pipeline * context):
                refused[f"{world} GPUs are no multiple of layout.tensor x layout.pipeline"
                        + (f" x layout.context={context}" if context > 1 else "")] += 1
                continue
            base = replace(run, layout=replace(run.layout, tensor=tensor, pipeline=pipeline, virtual=1, first_stage_layers=None,
                                               sequence=run.layout.sequence if measured else tensor > 1, share_tiles=False))
            for split in _encoders(base, bench):
                yield from _splits(split, bench, refused)


def _encoders(base: Run, bench: Bench) -> Iterator[Run]:
    """The encoder split over the tensor-parallel ranks; and whole on each, its tiles shared out, where that is possible and sooner done.
    Layer times that were measured are of an encoder that is split."""
    yield base
    shared = replace(base, layout=replace(base.layout, share_tiles=True))
    if bench.memo.measured or base.layout.tensor == 1:
        return
    if not rules.problems(replace(shared, layout=Layout(base.layout.tensor, share_tiles=True))):
        split, whole = (sum(bench.memo.costs(run, bench.fabric(run), row).vision.forward.seconds(bench.fabric(run).machine)
                            for row in bench.step(run).rows) for run in (base, shared))
        if whole < split:
            yield shared


def _splits(base: Run, bench: Bench, refused: Counter) -> Iterator[Run]:
    if _too_heavy(base, bench):
        refused["weights, gradients and optimizer alone need more than the GPU's memory"] += 1
        return
    for virtual in VIRTUAL if base.layout.pipeline > 1 else (1,):
        for first in _first_stages(base, virtual, bench):
            split = replace(base, layout=replace(base.layout, virtual=virtual, first_stage_layers=first))
            if problems := rules.problems(split):
                refused[problems[0]] += 1
            else:
                yield split


def _first_stages(run: Run, virtual: int, bench: Bench) -> list[int | None]:
    """An even split, and the two uneven ones nearest to a first stage that takes, encoder included, as long as the others."""
    stages, layers = run.layout.pipeline, run.model.language.layers
    alone = Layout(run.layout.tensor, share_tiles=run.layout.share_tiles)
    if stages == 1 or rules.problems(replace(run, layout=alone)):
        return [None]
    valid = [first for first in range(virtual, layers) if (layers - first) % ((stages - 1) * virtual) == 0 and first % virtual == 0]
    one = replace(run, layout=replace(alone, sequence=run.layout.sequence))
    costs = bench.memo.costs(one, bench.fabric(one), max(bench.step(one).rows, key=lambda row: row.tiles))
    layer = sum(p.forward.work + p.backward.work for p in costs.layers) / layers
    before = (costs.before.forward.work + costs.before.backward.work) / layer
    after = (costs.after.forward.work + costs.after.backward.work) / layer
    wanted = (layers + before + after) / stages - before
    return [None, *sorted(valid, key=lambda first: abs(first - wanted))[:2]]


def _too_heavy(run: Run, bench: Bench) -> bool:
    """Whether what stands through the whole run is too much for an average rank, whatever is recomputed."""
    whole = rank_parameters(replace(run, layout=Layout(run.layout.tensor, share_tiles=run.layout.share_tiles)), 0)[0]
    names = trained_names(run.model, run.train.trainable)
    weights, learning = sum(p.elements for p in whole), sum(p.elements for p in whole if p.name in names)
    needed = 2 * weights + (4 + (4 + 2 * moment_bytes(run.train)) / (bench.replicas(run) * run.layout.context)) * learning
    return needed / run.layout.pipeline > bench.cluster.gpu.memory


def _fastest(runs: Sequence[Run], bench: Bench, refused: Counter, wanted: int) -> list[Plan]:
    """Of each tensor and pipeline size the fastest that fits, fastest first.

    Each layout is tried without recomputation, and if that does not fit with more of it, always in the order of time: memory of
    what is slower than everything shown is not looked at.
    """
    plans = [Plan(run, bench) for run in runs]
    others = [_leaner(plan) for plan in plans]
    waiting = [(plan.time.seconds, number, plan) for number, plan in enumerate(plans)]
    heapify(waiting)
    found: dict[tuple[int, int], Plan] = {}
    while waiting and len(found) < wanted:
        _, number, plan = heappop(waiting)
        sizes = (plan.run.layout.tensor, plan.run.layout.pipeline)
        if sizes in found:
            continue
        if plan.fits_surely:
            found[sizes] = plan
        elif more := next(others[number], None):
            heappush(waiting, (more.time.seconds, number, more))
        else:
            refused["a rank needs more memory than the GPU surely has, whatever is recomputed"] += 1
    return list(found.values())


def _leaner(plan: Plan) -> Iterator[Plan]:
    if not plan.bench.memo.measured:
        yield from (replace(plan, run=run) for run in leaner(plan))


def _other_rows(plan: Plan, refused: Counter) -> Iterator[Run]:
    """Rows of half and twice the size, and rows whose tokens and tiles run out together."""
    data, samples = plan.run.data, plan.bench.samples
    if not data.packing or plan.bench.memo.measured:
        return
    tokens, tiles = sum(s.tokens for s in samples), sum(s.tiles for s in samples)
    most = max(s.tiles for s in samples)
    sizes = [(data.pack_tokens // 2, data.pack_tiles // 2), (2 * data.pack_tokens, 2 * data.pack_tiles)]
    if tiles:
        both = -(-data.pack_tiles * tokens // tiles // _ROW_STEP) * _ROW_STEP
        sizes += [(both, data.pack_tiles), (2 * both, 2 * data.pack_tiles)]
    for pack_tokens, pack_tiles in sizes:
        run = keeping_all(replace(plan.run, data=replace(data, pack_tokens=pack_tokens, pack_tiles=pack_tiles)))
        if problems := rules.problems(run):
            refused[problems[0]] += 1
        elif most > pack_tiles:
            refused[f"a sample has {most} tiles, more than data.pack_tiles={pack_tiles}"] += 1
        else:
            yield run
