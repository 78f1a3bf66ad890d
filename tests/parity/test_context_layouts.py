"""Context parallelism over 20 steps of both stages, alone and with every other kind of splitting, for D, X and H: the bounds and
their derivation are those of test_layouts. The core suite has tests/model/test_context_ranks.py instead."""

import pytest

from tests.parity.test_layouts import BOTH, OPEN, check

pytestmark = [pytest.mark.distributed, pytest.mark.full]

LAYOUTS = {
    "CP2": (2, "layout.context=2"),
    "CP2 x TP2 + sequence": (4, "layout.context=2 layout.tensor=2 layout.sequence=true"),
    "CP2 x PP2": (4, "layout.context=2 layout.pipeline=2"),
    "CP2 x PP2 interleaved": (4, "layout.context=2 layout.pipeline=2 layout.virtual=2"),
    "CP2 x DP2": (4, "layout.context=2"),
}
RECOMPUTE = {
    "CP2 recompute selective": (2, "layout.context=2 model.recompute=selective"),
    "CP4 recompute full": (4, "layout.context=4 model.recompute=full"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_context_layout(name, record_property):
    check(f"nvlm_d_tiny,{BOTH}", name, LAYOUTS[name], OPEN, record_property)


@pytest.mark.parametrize("name", RECOMPUTE)
def test_computed_again(name, record_property):
    check(f"nvlm_d_tiny,{BOTH}", name, RECOMPUTE[name], OPEN, record_property)
