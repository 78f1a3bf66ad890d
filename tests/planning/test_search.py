"""Layouts that are proposed: possible, fitting, ranked, and typed back by the words that are given for them."""

from dataclasses import replace

import pytest

from nvlm_train.config import rules
from nvlm_train.config.compose import compose
from nvlm_train.config.request import Assume
from nvlm_train.planning.devices import GPUS, Cluster
from nvlm_train.planning.plan import MEMORY_ERROR, Plan, bench_of
from nvlm_train.planning.reasons import compared, overrides, parts
from nvlm_train.planning.samples import assumed_samples
from nvlm_train.planning.search import search

DGX = Cluster(GPUS["h100"], 16, 8)
BIG = ["recipe=nvlm_d_72b", "stage=sft"]


def bench(words, cluster=DGX):
    run = compose(words)[0]
    return run, bench_of(run, cluster, assumed_samples(run, Assume(), 500))


@pytest.fixture(scope="module")
def big():
    run, on = bench(BIG)
    return run, on, search(run, on)


def test_proposals_are_possible_fit_and_are_ranked(big):
    _, on, found = big
    assert len(found.best) > 3
    seconds = [plan.time.seconds for plan in found.best]
    assert seconds == sorted(seconds)
    for plan in found.best:
        assert not rules.problems(plan.run) and rules.check_world(plan.run, on.cluster.world)
        assert max(memory.total for memory in plan.memory) * (1 + MEMORY_ERROR) <= on.cluster.gpu.memory


def test_the_best_is_no_slower_than_the_recipe(big):
    run, on, found = big
    assert Plan(run, on).fits_surely
    assert found.best[0].time.seconds <= Plan(run, on).time.seconds


def test_words_make_the_proposed_run(big):
    run, _, found = big
    for plan in found.best:
        assert compose([*BIG, *overrides(plan.run, run)])[0] == plan.run


def test_everything_looked_at_is_accounted_for(big):
    """What was refused is counted by reason, and every reason says which limit it is."""
    _, _, found = big
    assert found.tried > sum(found.refused.values()) > 0
    assert any("no multiple of layout.tensor x layout.pipeline" in reason for reason in found.refused)
    assert any("GPU" in reason and "memory" in reason for reason in found.refused)


def test_the_encoder_is_balanced_by_fewer_layers_beside_it():
    """With the encoder on it, a first stage of 14 of 80 layers is the slowest of four; the search finds fewer."""
    run, on = bench(BIG)
    busy = Plan(run, on).time.pipeline.busy
    assert busy[0] > 1.1 * max(busy[1:])
    uneven = next(plan for plan in search(run, on).best if plan.run.layout.tensor == 8 and plan.run.layout.pipeline == 4)
    assert uneven.run.layout.first_stage_layers < 14
    assert uneven.time.pipeline.bubble < Plan(run, on).time.pipeline.bubble


def test_tied_embeddings_and_few_heads_are_told():
    run, on = bench(["recipe=nvlm_d_2b", "stage=sft"], Cluster(GPUS["h100"], 1, 8))
    refused = " ".join(search(run, on).refused)
    assert "tie_embeddings needs layout.pipeline=1" in refused and "kv_heads=2" in refused


def test_nothing_fits_where_nothing_can():
    run, on = bench(BIG, Cluster(GPUS["h100"], 1, 1))
    found = search(run, on)
    assert found.best == () and sum(found.refused.values()) == found.tried


def test_reasons_are_the_parts_that_differ(big):
    run, on, found = big
    own = Plan(run, on)
    assert sum(parts(own).values()) + own.time.host_s == pytest.approx(own.time.seconds)
    assert compared(own, own) == "as fast"
    slower = Plan(replace(run, model=replace(run.model, recompute="full")), on)
    assert compared(slower, own).startswith("+") and "matrix products" in compared(slower, own)
    assert all(compared(plan, own) for plan in found.best)
