"""What layouts that do not fit compute again: only what keeps something, the fastest that fits, never slower than all layers."""

from dataclasses import replace

import pytest

from nvlm_train.config.compose import compose
from nvlm_train.config.request import Assume
from nvlm_train.planning import recomputing
from nvlm_train.planning import search as searching
from nvlm_train.planning.devices import GPUS, Cluster
from nvlm_train.planning.plan import MEMORY_ERROR, Plan, bench_of
from nvlm_train.planning.reasons import overrides, settings
from nvlm_train.planning.recomputing import keeping_all, leaner
from nvlm_train.planning.samples import assumed_samples

GIB = 1 << 30
ALL = "train.trainable=[vision,connector,language]"


def plan_of(*words, nodes=16) -> Plan:
    run = compose(list(words))[0]
    return Plan(keeping_all(run), bench_of(run, Cluster(GPUS["h100"], nodes, 8), assumed_samples(run, Assume(), 300)))


def as_before(plan):
    """What was tried before parts were: attention, then all layers."""
    for recompute in ("selective", "full"):
        yield replace(plan.run, model=replace(plan.run.model, recompute=recompute))


# Layouts that do not fit as they are: NVLM-D over few pipeline stages, all of it trained, and X's and H's paper layouts on fewer nodes.
TIGHT = (
    (16, "recipe=nvlm_d_72b", "stage=sft", "layout.tensor=4", "layout.pipeline=2", "layout.first_stage_layers=null"),
    (16, "recipe=nvlm_d_72b", "stage=sft", "layout.pipeline=4", ALL),
    (8, "recipe=nvlm_x_72b", "stage=sft"),
    (8, "recipe=nvlm_h_72b", "stage=sft"),
    (16, "recipe=nvlm_x_34b", "stage=sft", "layout.tensor=4", "data.pack_tokens=4096", "data.pack_tiles=56"),
)


@pytest.mark.parametrize("nodes, words", [(nodes, words) for nodes, *words in TIGHT])
def test_the_first_choice_that_fits_is_no_slower_than_all_layers_and_so_is_no_other_slower_one(nodes, words):
    plan = plan_of(*words, nodes=nodes)
    assert not plan.fits_surely
    found = [replace(plan, run=run) for run in leaner(plan)]
    assert all(other.fits_on(plan.too_full_for_sure) for other in found)
    fits = [other for other in found if other.fits_surely]
    assert fits and fits[0].time.seconds == min(other.time.seconds for other in fits)
    full = replace(plan, run=next(run for run in as_before(plan) if run.model.recompute == "full"))
    assert not full.fits_surely or fits[0].time.seconds <= full.time.seconds


def test_what_parts_add_adds_up():
    """Seconds of single parts are those that they add together, so that sets need not be tried to be put in order."""
    plan = plan_of("recipe=nvlm_x_72b", "stage=sft", ALL)
    on, row = plan.bench.fabric(plan.run), max(plan.step.rows, key=lambda row: row.tiles)
    added = recomputing._added(plan)
    assert set(added) == {"attention", "mlp", "cross_attention", "connector", "vision", "full"}
    every = recomputing._again(plan.run, frozenset(added) - {"full"})

    def backward(run):
        costs = plan.bench.memo.costs(run, on, row)
        return costs.before.backward.work + costs.between(range(80)).backward.work / plan.run.layout.pipeline

    parts = sum(seconds for part, seconds in added.items() if part != "full")
    assert backward(every) - backward(plan.run) == pytest.approx(parts, rel=1e-6)


@pytest.mark.parametrize("words, parts", [
    (("recipe=nvlm_d_72b", "stage=sft"), {"attention", "mlp", "connector", "full"}),
    (("recipe=nvlm_x_72b", "stage=sft", "train.trainable=[language,cross_attention]"), {"attention", "mlp", "cross_attention", "full"}),
])
def test_what_keeps_nothing_is_no_choice(words, parts):
    """A frozen encoder; a connector with nothing trained below the layers; cross-attention where there is none."""
    assert set(recomputing._added(plan_of(*words))) == parts


def test_feed_forwards_alone_beat_whole_layers():
    """72B over TP 4 and PP 2: all layers again is what was found before, 2.31 s and 66 GiB; feed-forwards take 2.21 s and 73 GiB."""
    plan = plan_of(*TIGHT[0][1:])
    best = next(other for other in (replace(plan, run=run) for run in leaner(plan)) if other.fits_surely)
    before = next(other for other in (replace(plan, run=run) for run in as_before(plan)) if other.fits_surely)
    assert (before.run.model.recompute, best.run.model.recompute, best.run.model.recompute_parts) == ("full", "none", ("mlp",))
    assert best.time.seconds < 0.97 * before.time.seconds
    assert max(memory.total for memory in best.memory) * (1 + MEMORY_ERROR) <= best.bench.cluster.gpu.memory
    assert "recompute mlp," in settings(best.run)


def test_a_trained_encoder_fits_where_nothing_did(monkeypatch):
    """72B with its 6B encoder trained, 16 nodes: no layout fitted with attention or all decoder layers computed again. With the encoder's
    layers the search finds one of 2.7 s, and words that make it."""
    words = ["recipe=nvlm_d_72b", "stage=sft", ALL]
    plan = plan_of(*words)
    run = compose(words)[0]
    best = searching.search(run, plan.bench).best[0]
    assert "vision" in best.run.model.recompute_parts and best.fits_surely and best.time.seconds < 3
    assert compose([*words, *overrides(best.run, run)])[0] == best.run
    assert any("recompute_parts=[vision" in word for word in overrides(best.run, run))
    monkeypatch.setattr(searching, "leaner", as_before)
    assert searching.search(run, plan.bench).best == ()
