"""How a row is shared out over context-parallel ranks, and attention of the parts: every token once, level, and the same numbers."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nvlm_train.model import attention
from nvlm_train.model.attention import _by_segment
from nvlm_train.model.context import deal, pieces
from tests.model.context_parts import attended_by_parts, shares
from tests.model.rows import EDGES, TOKENS_PER_TILE, T, make_row


def pairs(edges, ranks: int) -> list[int]:
    """(query, key) pairs of each rank."""
    return [sum(piece.pairs for piece in share.pieces) for share in shares(edges, ranks)]


@st.composite
def rows(draw):
    ranks = draw(st.sampled_from([2, 3, 4, 8]))
    tokens = 2 * ranks * draw(st.integers(1, 40))
    cuts = draw(st.sets(st.integers(1, tokens - 1), max_size=12)) if tokens > 1 else set()
    return [0, *sorted(cuts), tokens], ranks


@given(rows())
def test_every_token_is_on_one_rank_and_attends_to_all_before_it(drawn):
    edges, ranks = drawn
    parts = shares(edges, ranks)
    assert torch.cat([share.places for share in parts]).sort()[0].tolist() == list(range(edges[-1]))
    assert {len(share.places) for share in parts} == {edges[-1] // ranks}
    for share in parts:
        assert share.places.tolist() == sorted(share.places.tolist())
        assert [at for piece in share.pieces for at in range(piece.start, piece.end)] == share.places.tolist()
        assert all(piece.first in edges and not any(piece.first < edge < piece.end for edge in edges) for piece in share.pieces)
    assert sum(pairs(edges, ranks)) == sum(n * (n + 1) // 2 for n in (b - a for a, b in itertools.pairwise(edges)))


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_one_long_sample_is_level(ranks):
    """Chunks i and 2n - 1 - i of c tokens: pairs of all ranks are the same, (2n - 1) c^2 + c (c + 1)."""
    c = 16
    assert set(pairs([0, 2 * ranks * c], ranks)) == {(2 * ranks - 1) * c * c + c * (c + 1)}
    assert deal([0, 2 * ranks * c], ranks)[0] == [(0, c), ((2 * ranks - 1) * c, 2 * ranks * c)]


def test_packed_samples_are_level_too():
    """Rows of 16,384 tokens, samples of 200 to 6,000: the busiest of four ranks has at most 1.2 times the mean on average; the plain
    zigzag, which does not look at samples, has more."""
    random = torch.Generator().manual_seed(5)
    worst, plain = [], []
    for _ in range(50):
        lengths = torch.randint(200, 6000, (200,), generator=random).cumsum(0)
        edges = [0, *lengths[lengths < 16_384].tolist(), 16_384]
        own = pairs(edges, 4)
        chunks = [sum(piece.pairs for piece in pieces([(at, at + 2048)], edges)) for at in range(0, 16_384, 2048)]
        zigzag = [chunks[rank] + chunks[7 - rank] for rank in range(4)]
        worst.append(4 * max(own) / sum(own))
        plain.append(4 * max(zigzag) / sum(zigzag))
    mean, mean_plain = sum(worst) / len(worst), sum(plain) / len(plain)
    print(f"busiest rank over the mean: {mean:.3f}, plain zigzag {mean_plain:.3f}")
    assert mean < 1.2 < mean_plain


def test_a_row_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="a row of 30 tokens cannot be cut into 8 equal chunks, 2 for each of 4 ranks"):
        deal([0, 30], 4)


@pytest.mark.parametrize("architecture", ["nvlm_d", "nvlm_x", "nvlm_h"])
def test_parts_of_a_row_are_the_row(architecture):
    """Tokens, labels and weights once; tiles once; every visual token and every reader where it stood, with the tiles that it read."""
    row = make_row(architecture, 3)
    parts = [(share, share.take(row)) for share in shares(EDGES, 2)]
    order = torch.cat([share.places for share, _ in parts]).argsort()
    for name in ("tokens_T", "positions_T", "labels_T", "loss_weights_T"):
        assert torch.equal(torch.cat([getattr(part, name) for _, part in parts])[order], getattr(row, name))
    assert torch.equal(torch.cat([part.tiles_nCPP for _, part in parts]), row.tiles_nCPP)
    shown = (row.tile_starts_n[row.tile_starts_n >= 0][:, None] + torch.arange(TOKENS_PER_TILE)).flatten()
    seen = torch.zeros(T, dtype=torch.long)
    read = torch.zeros(T, 2, dtype=torch.long)
    for share, part in parts:
        at, which = share.spread(shown)
        assert torch.equal(share.places[at], shown[which])
        seen[share.places[at]] += 1
        for start, stop, first, last in part.reads_s4.tolist():
            read[share.places[start:stop]] += torch.tensor([first, last])
        for number, (start, end) in enumerate(itertools.pairwise(part.cu_seqlens.tolist())):
            assert all(EDGES[number] <= at < EDGES[number + 1] for at in share.places[start:end].tolist())
    expected = torch.zeros(T, 2, dtype=torch.long)
    for start, stop, first, last in row.reads_s4.tolist():
        expected[start:stop] += torch.tensor([first, last])
    assert torch.equal(read, expected)
    assert seen.sum() == len(shown) and (seen[shown] == 1).all()


def by_definition(q, k, v, cu_q, cu_k, longest_q, longest_k, **causal):
    """torch's variable-length kernel by its definition: causal from the lower right, where flash attention has it."""
    if causal.pop("enable_gqa", False):
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    assert causal == {"window_size": (-1, 0)} and longest_q == int(cu_q.diff().max()) and longest_k == int(cu_k.diff().max())
    out = []
    for (a, b), (c, d) in zip(itertools.pairwise(cu_q.tolist()), itertools.pairwise(cu_k.tolist()), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) / q.shape[-1] ** 0.5
        late = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
        out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~late, -torch.inf).softmax(-1), v[c:d]))
    return torch.cat(out)


@pytest.mark.parametrize("kernel", ["segments", "mask", "varlen"])
@pytest.mark.parametrize("edges, ranks", [([0, 48], 2), ([0, 5, 21, 60, 64], 4), ([0, 10, 24], 3)])
def test_attention_of_parts_is_attention_of_the_row(edges, ranks, kernel, monkeypatch):
    """Forward and backward. An output is a mean of values weighted to 1, a gradient a sum of at most 64 products of numbers around 1:
    float32 rounds each to 6e-8 of it, and 64 of them in another order differ by at most 64 x 6e-8 = 4e-6."""
    monkeypatch.setattr(attention, "varlen_attn", by_definition)
    random = torch.Generator().manual_seed(7)
    q, k, v, weight = (torch.randn(edges[-1], heads, 16, generator=random) for heads in (4, 2, 2, 4))
    whole = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = _by_segment(*whole, edges, None)
    (expected * weight).sum().backward()

    split = [x.clone().requires_grad_() for x in (q, k, v)]
    got = attended_by_parts(*split, shares(edges, ranks), kernel, {"window_size": (-1, 0)} if kernel == "varlen" else {}, monkeypatch)
    (got * weight).sum().backward()
    for mine, theirs in [(got, expected), *((a.grad, b.grad) for a, b in zip(split, whole, strict=True))]:
        assert (mine - theirs).abs().max() < 4e-6
