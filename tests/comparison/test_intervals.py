import math

import pytest

from nvlm_train.comparison.intervals import STUDENT, WILSON, interval, paired, student_t, wilson


def test_wilson_by_hand():
    """With z = 1.959964: half of ten right is 0.5 -+ 0.26341; twenty of twenty is 20 / (20 + z^2) up to 1; none of twenty mirrors it."""
    half = wilson(0.5, 10)
    assert (half.low, half.high, half.method) == (pytest.approx(0.23659, abs=1e-5), pytest.approx(0.76341, abs=1e-5), WILSON)
    every = wilson(1.0, 20)
    assert (every.low, every.high) == (pytest.approx(20 / (20 + 1.959964**2), abs=1e-6), 1.0)
    assert wilson(0.0, 20).high == pytest.approx(1 - every.low)
    assert wilson(0.0, 20).low == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="at least one question"):
        wilson(0.5, 0)


def test_student_by_hand():
    """Mean 0.6, deviation 0.1 over three: t at 2 degrees of freedom is 4.3027, so 0.6 -+ 4.3027 * 0.1 / sqrt(3)."""
    found = student_t([0.5, 0.6, 0.7])
    half = 4.3027 * 0.1 / math.sqrt(3)
    assert (found.low, found.high, found.method) == (pytest.approx(0.6 - half), pytest.approx(0.6 + half), STUDENT)
    assert student_t([0.0, 0.5, 1.0]) .low == 0.0 and student_t([0.0, 0.5, 1.0]).high == 1.0
    steady = student_t([0.7] * 30)
    assert steady.low == steady.high == pytest.approx(0.7)


def test_seeds_decide_the_method():
    assert interval([0.5, 0.6, 0.7], 1000) == student_t([0.5, 0.6, 0.7])
    assert interval([0.5], 10) == wilson(0.5, 10)
    # Two seeds that answer the same ten questions are still ten questions.
    assert interval([0.4, 0.6], 10) == wilson(0.5, 10)


def test_differences_are_paired_and_may_be_negative():
    found = paired([0.454, 0.469, 0.475], [0.507, 0.561, 0.578])     # differences -0.053, -0.092, -0.103
    assert (found.low, found.high) == (pytest.approx(-0.1480, abs=1e-4), pytest.approx(-0.0174, abs=1e-4))
    assert paired([0.5, 0.6], [0.4, 0.5]) is None
    assert paired([1.0, 0.0, 1.0], [0.0, 1.0, 0.0]).low == -1.0
