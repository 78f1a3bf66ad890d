from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_train.data.order import BLOCK, BlendSource, Order, quotas
from nvlm_train.data.permutation import key_of, permuted, permuted_all
from nvlm_train.errors import ConfigError, DataError


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 2000), key=st.integers(0, 2**64 - 1))
def test_a_permutation_is_one(n, key):
    assert sorted(permuted(place, n, key) for place in range(n)) == list(range(n))


def test_permutations_of_four_are_equally_likely():
    seen = Counter(tuple(permuted(place, 4, key_of("trial", trial)) for place in range(4)) for trial in range(4800))
    assert len(seen) == 24
    assert sum((count - 200) ** 2 / 200 for count in seen.values()) < 58   # chi-square of 23 degrees: beyond it 1 in 10,000


def test_neighbours_are_torn_apart():
    places = [permuted(place, 10_000, 7) for place in range(10_000)]
    near = sum(abs(a - b) <= 200 for a, b in pairwise(places)) / 9_999
    assert 0.025 < near < 0.055   # a perfect shuffle: 0.04


def test_golden_values():
    """The order of a run must never change silently: a resumed run would repeat and lose samples."""
    order = Order(1234, [BlendSource("captions", 700, 0.6), BlendSource("vqa", 90, 0.3), BlendSource("text", 5000, 0.1)])
    assert order.quotas == [600, 300, 100]
    assert [(p.source, p.sample, p.epoch) for p in map(order.at, (0, 1, 2, 999, 1000, 123_456_789))] == [
        (1, 28, 0), (1, 40, 0), (1, 6, 0), (0, 516, 0), (0, 645, 0), (0, 197, 105820)]
    assert key_of("epoch", 1234, "captions", 0) == 8326330392134847416


def test_every_sample_once_per_epoch():
    sizes = {"a": 130, "b": 77, "c": 1001}
    order = Order(5, [BlendSource(name, size, weight) for (name, size), weight in zip(sizes.items(), (0.5, 0.2, 0.3), strict=True)])
    seen = Counter(order.at(n) for n in range(12_000))
    assert max(seen.values()) == 1   # no (source, sample, epoch) twice
    for source, size in enumerate(sizes.values()):
        given_out = sum(pick.source == source for pick in seen)
        for epoch in range(given_out // size):
            assert {pick.sample for pick in seen if pick.source == source and pick.epoch == epoch} == set(range(size))
    assert [sum(pick.source == source for pick in seen) for source in range(3)] == [6000, 2400, 3600] == order.drawn(12_000)


@pytest.mark.parametrize("size", [1, 7, 60, 999])
def test_an_epoch_begins_when_the_one_before_is_over(size):
    """Also for sources smaller than their share of a block: none repeats while a sibling waits."""
    order = Order(5, [BlendSource("small", size, 0.7), BlendSource("large", 5000, 0.3)])
    given_out = [pick for pick in map(order.at, range(3000)) if pick.source == 0]
    for epoch in range(len(given_out) // size):
        part = given_out[epoch * size:(epoch + 1) * size]
        assert {pick.epoch for pick in part} == {epoch} and {pick.sample for pick in part} == set(range(size))


def test_epochs_and_seeds_and_names_shuffle_differently():
    def first(seed=1, name="a", epoch=0):
        order = Order(seed, [BlendSource(name, BLOCK)])
        return [order.at(n).sample for n in range(epoch * BLOCK, epoch * BLOCK + 50)]
    assert len({tuple(first()), tuple(first(seed=2)), tuple(first(name="b")), tuple(first(epoch=1))}) == 4


def test_the_n_th_sample_does_not_depend_on_what_was_asked_before():
    sources = [BlendSource("a", 130, 2), BlendSource("b", 77, 1)]
    forward = [Order(5, sources).at(n) for n in range(980, 1020)]
    order = Order(5, sources)
    assert [order.at(n) for n in reversed(range(980, 1020))] == forward[::-1]


@pytest.mark.parametrize("slots", [0, 1, 999, 1000, 1001, 2500])
def test_drawn_counts_what_at_gives(slots):
    order = Order(5, [BlendSource("a", 130, 2), BlendSource("b", 77, 1)])
    counts = Counter(order.at(n).source for n in range(slots))
    assert order.drawn(slots) == [counts[0], counts[1]]


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60))
def test_quotas_fill_the_block_and_forget_nobody(weights):
    found = quotas(weights)
    assert sum(found) == BLOCK and min(found) >= 1
    if min(weights) / sum(weights) >= 1 / BLOCK:   # with room for all, none is off by a whole slot
        assert all(abs(quota - BLOCK * weight / sum(weights)) < 1 for quota, weight in zip(found, weights, strict=True))


def test_impossible_weights_are_refused():
    for weights in ([], [1, 0], [1, -1], [float("nan")], [float("inf")], [1] * (BLOCK + 1)):
        with pytest.raises(ConfigError):
            quotas(weights)


def test_a_source_that_runs_out_is_refused_with_both_numbers():
    order = Order(5, [BlendSource("a", 1000, 0.5, epochs=1.5), BlendSource("b", 100, 0.5)])
    order.require(3000)
    assert order.at(2999).epoch in range(100)
    with pytest.raises(ConfigError) as caught:
        order.require(3200)
    needed = order.drawn(3200)[0]
    assert needed > 1500 and f"{needed:,}" in str(caught.value) and "1,500" in str(caught.value) and "data.blend.a.epochs" in str(caught.value)
    beyond = next(n for n in range(3000, 3200) if order._draw(n)[0] == 0)
    with pytest.raises(DataError, match="1,500"):
        order.at(beyond)


def test_an_empty_source_is_refused():
    with pytest.raises(DataError, match="no samples in: b"):
        Order(5, [BlendSource("a", 1), BlendSource("b", 0)])


def test_the_fingerprint_tells_orders_apart():
    def of(seed=1, **change):
        return Order(seed, [BlendSource(**{"name": "a", "size": 10, "weight": 1.0, "content": "x", **change}), BlendSource("b", 10)]).fingerprint
    assert len({of(), of(seed=2), of(name="c"), of(size=11), of(weight=2.0), of(content="y")}) == 6
    assert of() == of(weight=1.0001)   # the same quotas: the same order


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 1000, 999_983, 2**40 + 1])
def test_places_shuffled_together_are_those_shuffled_alone(n):
    key = key_of("together", n)
    places = np.unique(np.linspace(0, n - 1, 300).astype(np.int64))
    assert permuted_all(places, n, key).tolist() == [permuted(int(place), n, key) for place in places]


def test_slots_asked_together_are_those_asked_alone():
    order = Order(5, [BlendSource("a", 70, 0.7), BlendSource("b", 4000, 0.3)])
    assert order.between(950, 2100) == [order.at(n) for n in range(950, 2100)]
    assert {pick.epoch for pick in order.between(950, 2100) if pick.source == 0} > {10, 20}
