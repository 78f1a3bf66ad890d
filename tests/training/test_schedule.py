from dataclasses import replace

import pytest

from nvlm_train.config.schema import Train
from nvlm_train.training.schedule import lr_at

COSINE = Train(steps=10, lr=1e-3, min_lr=1e-4, warmup_steps=2)


@pytest.mark.parametrize("step, expected", [
    (1, 5e-4), (2, 1e-3), (3, 9.657457e-4), (4, 8.681981e-4), (6, 5.5e-4), (8, 2.318019e-4), (10, 1e-4), (11, 1e-4),
])
def test_cosine_with_warm_up(step, expected):
    assert lr_at(step, COSINE) == pytest.approx(expected, rel=1e-6)


def test_cosine_without_warm_up_starts_below_the_peak_and_ends_at_the_minimum():
    plain = Train(steps=100, lr=2e-5, min_lr=2.5e-7, warmup_steps=0)
    assert lr_at(1, plain) == pytest.approx(1.9995127e-5, rel=1e-6)
    assert lr_at(50, plain) == pytest.approx((2e-5 + 2.5e-7) / 2)
    assert lr_at(100, plain) == 2.5e-7
    rates = [lr_at(step, plain) for step in range(1, 101)]
    assert rates == sorted(rates, reverse=True)


def test_a_shorter_decay_ends_earlier_and_stays():
    early = replace(COSINE, steps=100, decay_steps=10)
    assert [lr_at(step, early) for step in range(1, 11)] == [lr_at(step, COSINE) for step in range(1, 11)]
    assert lr_at(11, early) == lr_at(100, early) == COSINE.min_lr


def test_constant_keeps_the_peak_after_warm_up():
    constant = Train(steps=5, lr=3e-4, min_lr=0.0, warmup_steps=3, schedule="constant")
    assert [lr_at(step, constant) for step in range(1, 6)] == pytest.approx([1e-4, 2e-4, 3e-4, 3e-4, 3e-4])


def test_steps_count_from_one():
    with pytest.raises(ValueError, match="counted from 1, got 0"):
        lr_at(0, COSINE)
