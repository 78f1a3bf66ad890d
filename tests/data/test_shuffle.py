"""Windows: every sample once a pass, few shards in use at a time, and how random it is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import shuffling
from nvlm_train.data.order import BLOCK, BlendSource, Order
from nvlm_train.data.shuffle import FullShuffle, WindowShuffle


def shard_of(sizes):
    return np.repeat(np.arange(len(sizes)), sizes)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(sum), st.integers(1, 400), st.integers(0, 3))
def test_a_pass_gives_every_sample_once_and_says_which_shards_it_reads(sizes, window, epoch):
    shuffle = WindowShuffle(7, "a", sizes, window)
    places = np.arange(sum(sizes))
    samples = shuffle.samples(places, epoch)
    assert sorted(samples.tolist()) == places.tolist()
    shards = shard_of(sizes)[samples]
    seen, upcoming = [], None
    for place in places.tolist():
        now, following = shuffle.shards_from(place, epoch)
        assert shards[place] in now
        if not seen or seen[-1] != now:
            assert not seen or upcoming == now      # what was announced as next comes next
            seen.append(now)
        upcoming = following
    assert sum(map(len, seen)) <= len(sizes)        # no shard belongs to two windows
    assert upcoming == shuffle.shards_from(0, epoch + 1)[0]


def test_windows_are_level_and_near_the_size_asked_for():
    sizes = [100] * 97
    shuffle = WindowShuffle(1, "a", sizes, 1000)
    windows = []
    for place in range(0, 9700, 100):
        now = shuffle.shards_from(place, 0)[0]
        if not windows or windows[-1] != now:
            windows.append(now)
    assert len(windows) == 10 and {len(window) for window in windows} == {9, 10}


def test_places_do_not_depend_on_each_other_and_passes_differ():
    sizes = [30, 50, 20, 44]
    shuffle = WindowShuffle(3, "a", sizes, 60)
    whole = shuffle.samples(np.arange(144), 1)
    for place in (0, 1, 59, 60, 143):
        assert WindowShuffle(3, "a", sizes, 60).samples(np.array([place]), 1) == whole[place]
    assert whole.tolist() != shuffle.samples(np.arange(144), 2).tolist() != WindowShuffle(4, "a", sizes, 60).samples(np.arange(144), 2).tolist()
    with pytest.raises(IndexError, match="144"):
        shuffle.samples(np.array([144]), 0)


def test_the_order_of_a_blend_with_windows():
    sources = [BlendSource("a", 300, 0.6, shards=(100, 60, 140)), BlendSource("b", 50, 0.4, shards=(25, 25))]
    order = Order(5, sources, window=100)
    given = [[], []]
    for pick in order.between(0, 3 * BLOCK):
        given[pick.source].append(pick.sample)
    assert [len(samples) for samples in given] == [1800, 1200]
    for samples, size in zip(given, (300, 50), strict=True):
        for start in range(0, len(samples), size):
            assert sorted(samples[start:start + size]) == list(range(size))
    assert order.fingerprint != Order(5, sources).fingerprint != Order(5, sources, window=200).fingerprint
    slot = 777
    now = order.shards_from(slot)
    pick = order.at(slot)
    assert shard_of(sources[pick.source].shards)[pick.sample] in now[pick.source][0]
    assert [shards for shards, in Order(5, sources).shards_from(slot)] == [[0, 1, 2], [0, 1]]


def test_quality_as_documented():
    """The share of neighbours out of one shard, and how far samples travel: `docs/data_order.md` tells these figures."""
    full = shuffling.quality(FullShuffle(1, "a", 20_000, 100).samples(np.arange(20_000), 0), [200] * 100)
    assert full["same_shard"] == pytest.approx(0.01, abs=0.003)
    for shards in (5, 20):
        order = WindowShuffle(1, "a", [200] * 100, 200 * shards).samples(np.arange(20_000), 0)
        found = shuffling.quality(order, [200] * 100)
        assert found["same_shard"] == pytest.approx(1 / shards, abs=0.01)
        assert found["shards_in_1000"] <= 2 * shards
