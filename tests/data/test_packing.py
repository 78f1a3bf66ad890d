import numpy as np
import pytest
import torch
from data_toys import make_samples
from hypothesis import given, settings
from hypothesis import strategies as st

from nvlm_train.contracts import EncodedSample
from nvlm_train.data.packing import Cost, assign, deal, pack, pack_row
from nvlm_train.errors import DataError

costs_strategy = st.lists(st.builds(Cost, st.integers(1, 100), st.integers(0, 7)), max_size=60)


def toy(key: str, length: int, tiles: int = 0) -> EncodedSample:
    """Tokens counting up from 100, the second half learned, tiles filled with the length."""
    weights = np.zeros(length, np.float32)
    weights[length // 2:] = 1.0
    return EncodedSample(key, "src-" + key, np.arange(100, 100 + length), weights, np.full((tiles, 3, 4, 4), length, np.uint8),
                         np.arange(1, 1 + tiles))


@settings(deadline=None)
@given(costs_strategy)
def test_rows_hold_every_sample_once_within_both_budgets(costs):
    rows = pack(costs, 100, 7)
    assert sorted(i for row in rows for i in row) == list(range(len(costs)))
    for row in rows:
        assert sum(costs[i].tokens for i in row) <= 100 and sum(costs[i].tiles for i in row) <= 7
    # best fit leaves at most one row that is under half full in both budgets
    assert sum(all(2 * sum(getattr(costs[i], what) for i in row) < most for what, most in (("tokens", 100), ("tiles", 7)))
               for row in rows) <= 1


def test_largest_first_and_tightest_fit():
    costs = [Cost(30, 0), Cost(60, 0), Cost(40, 0), Cost(70, 0)]
    assert pack(costs, 100, 7) == [[0, 3], [1, 2]]
    assert pack([Cost(10, 4), Cost(10, 4), Cost(10, 3)], 100, 7) == [[0, 2], [1]]   # tiles decide
    assert pack([Cost(10, 0), Cost(20, 0)], 100, 0) == [[0, 1]]                     # no picture allowed, none there


def test_packing_fills_rows():
    rng = np.random.default_rng(0)
    costs = [Cost(int(rng.integers(40, 700)) + 261 * tiles, tiles) for tiles in rng.choice([0, 0, 1, 3, 5, 7], 512).tolist()]
    rows = pack(costs, 4096, 20)
    assert sum(cost.tokens for cost in costs) / (4096 * len(rows)) > 0.93


def test_a_sample_larger_than_a_row_is_refused():
    with pytest.raises(DataError, match="101 tokens and 2 tiles; a row holds 100"):
        pack([Cost(5, 0), Cost(101, 2)], 100, 7)
    with pytest.raises(DataError, match="8 tiles"):
        assign([Cost(5, 8)], 100, 7, 1, packing=False)


@settings(deadline=None)
@given(costs_strategy, st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_ranks_get_equally_many_rows(costs, ranks, multiple, packing):
    dealt = assign(costs, 100, 7, ranks, multiple, packing)
    counts = {len(rows) for rows in dealt}
    assert len(dealt) == ranks and len(counts) == 1
    count = counts.pop()
    assert count >= 1 and count % multiple == 0
    rows = [row for rank in dealt for row in rank]
    assert sorted(i for row in rows for i in row) == list(range(len(costs)))
    assert (count - multiple) * ranks < max(1, sum(bool(row) for row in rows))   # no more empty rows than needed
    if not packing:
        assert max(map(len, rows)) <= 1


def test_ranks_are_level_in_work():
    rng = np.random.default_rng(1)
    costs = [Cost(int(tokens), int(tokens) % 8) for tokens in rng.integers(50, 400, 256)]
    rows = pack(costs, 512, 20)
    dealt = deal(rows, costs, 4)
    loads = [sum(costs[i].work for row in rank for i in row) for rank in dealt]
    assert max(loads) / min(loads) < 1.05


def test_a_row_by_hand():
    row = pack_row([toy("a", 4, tiles=2), toy("b", 3)], 10, pad_id=9, tile_size=4)
    assert row.tokens_T.tolist() == [100, 101, 102, 103, 100, 101, 102, 9, 9, 9]
    assert row.positions_T.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]
    assert row.loss_weights_T.tolist() == [0, 1, 1, 0, 1, 1, 0, 0, 0, 0]   # weight of predicting the *next* token of the sample
    assert row.labels_T.tolist() == [0, 102, 103, 0, 101, 102, 0, 0, 0, 0]
    assert row.cu_seqlens.tolist() == [0, 4, 7, 10] and row.cu_seqlens.dtype == torch.int32
    assert row.tile_starts_n.tolist() == [1, 2] and row.tiles_nCPP.shape == (2, 3, 4, 4)
    assert row.keys == ("a", "b") and row.sources == ("src-a", "src-b") and row.real_tokens == 7
    assert row.tokens_T.dtype == row.labels_T.dtype == row.positions_T.dtype == row.tile_starts_n.dtype == torch.int64
    assert row.loss_weights_T.dtype == torch.float32 and row.tiles_nCPP.dtype == torch.uint8 and row.tiles_nCPP.is_contiguous()


def test_tiles_and_starts_follow_their_sample():
    row = pack_row([toy("a", 5), toy("b", 4, 1), toy("c", 6, 2)], 15, pad_id=0, tile_size=4)
    assert row.tile_starts_n.tolist() == [6, 10, 11]
    assert row.tiles_nCPP[:, 0, 0, 0].tolist() == [4, 6, 6]
    assert row.cu_seqlens.tolist() == [0, 5, 9, 15] and row.real_tokens == 15   # a full row has no padding segment


def test_an_empty_row():
    row = pack_row([], 8, pad_id=9, tile_size=4)
    assert row.tokens_T.tolist() == [9] * 8 and row.cu_seqlens.tolist() == [0, 8] and row.real_tokens == 0
    assert not row.loss_weights_T.any() and row.tiles_nCPP.shape == (0, 3, 4, 4) and row.tile_starts_n.shape == (0,)


def test_too_many_tokens_for_the_row():
    with pytest.raises(DataError, match="2 samples of 9 tokens do not fit a row of 8"):
        pack_row([toy("a", 5), toy("b", 4)], 8, pad_id=0, tile_size=4)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(8)))
def test_packing_keeps_every_samples_loss(shared_encoder, order):
    """What a sample teaches does not depend on its neighbours: the same (position, label, weight) triples in any company."""
    samples = [shared_encoder.encode(sample) for sample in make_samples(8)]
    alone = {}
    for sample in samples:
        row = pack_row([sample], 256, 0, 28)
        alone[sample.key] = [t[:sample.length] for t in (row.tokens_T, row.positions_T, row.labels_T, row.loss_weights_T)]
    row = pack_row([samples[i] for i in order], 1200, 0, 28)
    for i, key in enumerate(row.keys):
        span = slice(int(row.cu_seqlens[i]), int(row.cu_seqlens[i + 1]))
        for together, by_itself in zip((row.tokens_T, row.positions_T, row.labels_T, row.loss_weights_T), alone[key], strict=True):
            assert torch.equal(together[span], by_itself)
    assert row.loss_weights_T.sum() == sum(sample.loss_weights[1:].sum() for sample in samples)
    starts = row.tile_starts_n
    assert all((row.tokens_T[start:start + 4] == 3).all() for start in starts) and len(starts) == len(row.tiles_nCPP)
