"""The time model against what was measured on one H100, and against the paper's Table 3 (benchmarks/planning_known.py).

The model is meant to be good to 15 % (`plan.STEP_ERROR`): two predictions may then be off by (1 + e) / (1 - e) against each other,
1.35. That is the band for ratios; it was not chosen to hold, and the model's constants come from other figures than Table 3.
"""

import pytest

from benchmarks.planning_known import LINEARS, TABLE_3, linear_tflops, ratio, steps, table_3, workload
from nvlm_train.planning.plan import STEP_ERROR

BAND = (1 + STEP_ERROR) / (1 - STEP_ERROR)


@pytest.mark.parametrize("shape", LINEARS)
def test_linears(shape):
    assert linear_tflops(*shape) == pytest.approx(LINEARS[shape][0], rel=STEP_ERROR)


@pytest.mark.parametrize("shape", [shape for shape, (bf16, fp8) in LINEARS.items() if fp8 > 0.9 * bf16])
def test_linears_in_fp8_but_the_smallest(shape):
    """That one ran at 0.43 of its bf16 rate, which neither its operations nor its bytes explain; `model.fp8_layers=auto` takes none like it."""
    assert linear_tflops(*shape, fp8=True) == pytest.approx(LINEARS[shape][1], rel=STEP_ERROR)


@pytest.mark.parametrize("known", steps(), ids=lambda known: known.name)
def test_whole_steps(known):
    assert abs(known.off) < STEP_ERROR


def test_the_workload_is_the_measured_one():
    """96 samples that came at 35.8 a second with 39,669 tokens a second, and at 29.3 with 32,389."""
    tokens = sum(sample.tokens for sample in workload("finetuning"))
    assert tokens / 96 == pytest.approx(39669 / 35.8, rel=2e-3) and tokens / 96 == pytest.approx(32389 / 29.3, rel=2e-3)


@pytest.fixture(scope="module")
def table():
    return table_3()


def test_the_order_of_table_3(table):
    assert table["nvlm_x"].predicted < table["nvlm_h"].predicted < table["nvlm_d"].predicted


@pytest.mark.parametrize("name", [name for name in TABLE_3 if name != "nvlm_d"])
def test_the_ratios_of_table_3(table, name):
    measured, predicted = ratio(table, name)
    assert measured / BAND < predicted < measured * BAND


def test_no_iteration_is_predicted_slower_than_it_was(table):
    """Theirs ran on an older implementation and waited for its data; where the model is slower, it counts what nobody does."""
    assert all(known.predicted < known.measured for known in table.values())
