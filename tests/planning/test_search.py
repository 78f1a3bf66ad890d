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


def test_the_same_question_has_the_same_answer(big):
    found, again = big[2], search(*bench(BIG))
    assert [plan.run for plan in again.best] == [plan.run for plan in found.best] and again.refused == found.refused


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


def test_the_encoder_is_balanced_by_fewer_layers_beside_it(big):
    """With the encoder on it, a first stage of 14 of 80 layers is the slowest of four. Fewer would do; the search finds that, or shares
    the encoder's tiles out, which makes it light."""
    run, on, found = big
    own = Plan(run, on).time.pipeline
    assert own.busy[0] > 1.1 * max(own.busy[1:])
    assert Plan(replace(run, layout=replace(run.layout, first_stage_layers=11)), on).time.pipeline.bubble < own.bubble
    uneven = next(plan for plan in found.best if plan.run.layout.tensor == 8 and plan.run.layout.pipeline == 4)
    assert uneven.run.layout.first_stage_layers < 14 or uneven.run.layout.share_tiles
    assert uneven.time.pipeline.bubble < own.bubble


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


def test_messages_beside_the_computing_cost_what_does_not_fit_there(big):
    """The same messages; of the first rank's at least one bucket of gradients and weights, of a later one's perhaps nothing."""
    run, on, _ = big
    beside, after = (Plan(replace(run, layout=replace(run.layout, overlap=overlap)), on).time for overlap in (True, False))
    assert beside.volumes == after.volumes and beside.pipeline == after.pipeline
    for (seconds, sent), (longer, same) in zip(beside.updates, after.updates, strict=True):
        assert 0 < seconds < longer and sent == same


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_tiles_are_shared_out_where_that_is_faster(stage):
    """Against 8 ranks that split the 6B encoder: no message in its layers, no dummy heads. Not where it is trained."""
    run, on = bench(["recipe=nvlm_d_72b", f"stage={stage}"])
    found = search(run, on).best
    shared = next(plan for plan in found if plan.run.layout.share_tiles)
    split = Plan(replace(shared.run, layout=replace(shared.run.layout, share_tiles=False)), on)
    assert shared.time.seconds < split.time.seconds and shared.memory[0].weights > split.memory[0].weights
    trained = replace(run, train=replace(run.train, trainable=("vision", "connector")))
    assert not any(plan.run.layout.share_tiles for plan in search(trained, bench_of(trained, on.cluster, on.samples)).best)
