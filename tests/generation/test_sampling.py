"""Choosing tokens: the likeliest, or drawn by temperature and top-p."""

import math
from collections import Counter

import pytest
import torch

from nvlm_train.errors import DataError
from nvlm_train.generation.request import Sampling
from nvlm_train.generation.sampling import Choice, choose

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -math.inf]])


def drawn(count: int, **sampling) -> Counter:
    choice = Choice(Sampling(1, **sampling))
    return Counter(choose(LOGITS, [choice])[0] for _ in range(count))


def test_without_temperature_the_likeliest_and_of_equal_ones_the_first():
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 5.0], [-math.inf, -math.inf, -2.0]])
    assert choose(logits, [Choice(Sampling(1))] * 3) == [1, 0, 2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_their_probability_says(temperature):
    """Chi-square over 4,000 draws, three degrees of freedom: above 16.3 in one of a thousand, and the seed is fixed."""
    count = 4000
    seen = drawn(count, temperature=temperature, seed=3)
    expected = (LOGITS[0] / temperature).softmax(-1) * count
    assert seen[4] == 0
    assert sum((seen[token] - float(expected[token])) ** 2 / float(expected[token]) for token in range(4)) < 16.3


@pytest.mark.parametrize("top_p, kept", [(0.01, 1), (0.64, 1), (0.65, 2), (0.88, 2), (0.89, 3), (0.97, 4), (1.0, 4)])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    """Probabilities are 0.6439, 0.2369, 0.0871, 0.0321: together 0.6439, 0.8808, 0.9679, 1."""
    seen = drawn(1500, temperature=1.0, top_p=top_p, seed=1)
    assert set(seen) == set(range(kept))
    if top_p == 0.65:
        assert seen[0] / 1500 == pytest.approx(0.6439 / 0.8808, abs=0.04), "the kept ones keep their shares"


def test_a_cold_enough_draw_is_the_likeliest():
    assert set(drawn(50, temperature=1e-30)) == set(drawn(50, temperature=5e-324)) == {0}
    large = torch.tensor([[3e38, 1.0, -3e38]])
    assert choose(large, [Choice(Sampling(1, temperature=1.0))]) == [0]


def test_what_is_drawn_depends_on_the_seed_and_not_on_neighbours():
    torch.manual_seed(5)
    logits = torch.randn(40, 3, 50)

    def answers(order: list[int]) -> dict[int, list[int]]:
        """Of three answers, of which the middle one is greedy; they stand in rows in this order."""
        choices = [Choice(Sampling(40, temperature=[1.0, 0.0, 0.7][n], top_p=0.9, seed=n)) for n in range(3)]
        steps = [choose(step[order], [choices[n] for n in order]) for step in logits]
        return {n: [step[at] for step in steps] for at, n in enumerate(order)}

    together = answers([0, 1, 2])
    assert answers([2, 0, 1]) == together and answers([1, 2, 0]) == together
    assert {**answers([0]), **answers([1]), **answers([2])} == together
    assert together[1] == logits[:, 1].argmax(-1).tolist()
    choice = Choice(Sampling(40, temperature=1.0, top_p=0.9, seed=8))
    assert [choose(step[:1], [choice])[0] for step in logits] != together[0]


def test_nobody_to_choose_for():
    assert choose(torch.zeros(1, 5), []) == []


@pytest.mark.parametrize("wrong, said", [
    ({"max_new_tokens": 0}, "max_new_tokens is 0; it is at least 1"), ({"temperature": -0.1}, "temperature is -0.1"),
    ({"temperature": math.nan}, "temperature is nan"), ({"temperature": math.inf}, "temperature is inf"), ({"top_p": 0}, "top_p is 0"),
    ({"top_p": 1.01}, "top_p is 1.01"), ({"top_p": math.nan}, "top_p is nan"), ({"seed": -1}, "seed is -1"), ({"seed": 2**63}, "seed is")])
def test_settings_that_mean_nothing_are_refused(wrong, said):
    with pytest.raises(DataError, match=said):
        Sampling(**{"max_new_tokens": 1, **wrong})
