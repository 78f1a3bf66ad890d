"""Bytes that live at once and bytes kept for a backward, on tensors small enough to count by hand."""

import torch

from nvlm_train.planning.live import Live, Saved

N = 1000                                    # numbers of 4 bytes


def test_the_peak_is_what_lives_at_once_each_storage_counted_once():
    given = torch.ones(N)
    with Live(ignore=[given]) as live:
        first = given * 2                   # 4N
        view = first[:10]                   # the same storage
        second = first + given              # 8N
        del first
        assert live.now == 8 * N            # the view holds it
        del view
        assert live.now == 4 * N
        second.add_(given)                  # in place
    assert live.now == 4 * N and live.peak == 8 * N


def test_kept_is_what_the_graph_holds_without_parameters():
    weight, given = torch.ones(N, requires_grad=True), torch.ones(N)
    saved = Saved(ignore=[weight])
    with saved():
        product = weight * given            # keeps `given` for the weight; the weight itself is no activation
        out = (product.exp() * given).sum() # exp keeps its result, the product keeps `given` again
    assert saved.bytes == 2 * 4 * N
    del given, product
    out.backward()
    assert weight.grad is not None and saved.bytes == 0


def test_a_graph_given_up_keeps_nothing():
    weight, saved = torch.ones(N, requires_grad=True), Saved()
    with saved():
        (weight.exp() * 2).sum()
    assert saved.bytes == 0
