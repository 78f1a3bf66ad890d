"""A hundred steps on the fast path, its kernels compiled, beside the plain one.

How far two curves may part is not a property of the kernels alone: steps that learn the same eight rows by heart multiply a difference a
hundredfold and more. So the measure is the plain path itself, begun from weights that are each moved by about one rounding (2^-24 of itself
in fp32, 2^-9 in bf16), which is what another order of sums or another place of rounding does to a layer's result. Both are single draws of
the same kind of noise; of their mean differences over many steps the larger is allowed to be three times the smaller.
"""

import pytest

from tests.kernels.test_fast_path import measured

pytestmark = [pytest.mark.full, pytest.mark.distributed]
STEPS, FOLD = 100, 3


def mean_difference(steps: list, plain: list, first: int) -> float:
    """Of the losses of the first steps, relative."""
    return sum(abs(one - other) / other for (one, _), (other, _) in zip(steps[:first], plain[:first], strict=True)) / first


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", ["nvlm_d_tiny", "nvlm_x_tiny", "nvlm_h_tiny"])
def test_curves_part_no_faster_than_by_one_rounding(tmp_path, recipe, dtype):
    check = f"curve:{recipe}:{dtype}:{STEPS}:compiled"
    found = measured(tmp_path, 1, check, timeout=900)[check]
    fast, plain, moved = found["fast"], found["plain"], found["moved"]
    assert len(fast) == STEPS and plain[-1][0] < 0.5 * plain[0][0]
    for first in (25, STEPS):
        assert mean_difference(fast, plain, first) < FOLD * mean_difference(moved, plain, first)
    assert mean_difference(moved, plain, STEPS) < {"fp32": 1e-5, "bf16": 1e-2}[dtype]       # or the measure would say nothing
