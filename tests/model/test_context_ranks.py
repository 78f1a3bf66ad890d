"""What `context_ranks` measured: a row shared out over two ranks gives the losses, gradients and logits of the row as one.

Bounds as in tests/parity/test_layouts.py: a loss from equal weights to 1e-6, norms of gradients to 3e-4 of themselves.
"""

import json
from pathlib import Path

import pytest

from tests.engine.launching import launch

SCRIPT = Path(__file__).parent / "context_ranks.py"
LOSS, NORM = 1e-6, 3e-4

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    out = tmp_path_factory.mktemp("context") / "facts.json"
    done = launch(SCRIPT, 2, out, folder=out.parent, timeout=240)
    assert done.returncode == 0, done.output[-4000:]
    return json.loads(out.read_text())


def test_losses_and_gradients_are_those_of_whole_rows(facts):
    assert len(facts) == 5
    for case, measured in facts.items():
        whole, shared = measured["whole"], measured["shared"]
        assert whole.keys() == shared.keys() and whole["grad_norm"] > 0, case
        for field in ("weight", "tokens", "tiles"):
            assert shared[field] == whole[field] > 0, f"{case}: {field}"
        assert shared["loss"] == pytest.approx(whole["loss"], rel=LOSS), case
        for part in {"grad_norm", "connector", "gates", "cross-attention"} & whole.keys():
            assert shared[part] == pytest.approx(whole[part], rel=NORM), f"{case}: {part}"


def test_a_row_of_text_alone_hangs_nowhere(facts):
    """Its gradient is zero where only the connector learns, and otherwise the whole row's."""
    for case, measured in facts.items():
        assert measured["shared"]["text"] == pytest.approx(measured["whole"]["text"], rel=NORM), case
    assert facts["nvlm_d pretrain"]["shared"]["text"] == facts["nvlm_x connector"]["shared"]["text"] == 0
    assert facts["nvlm_h sft"]["shared"]["text"] > 0


def test_evaluation_agrees_from_pixels_and_from_cached_features(facts):
    for case, measured in facts.items():
        whole, shared = measured["whole"], measured["shared"]
        for pixels in ("evaluated", "cached"):
            assert shared[pixels] == pytest.approx(whole["evaluated"], rel=LOSS), f"{case}: {pixels}"


def test_logits_are_of_the_whole_row_on_every_rank(facts):
    """Nothing is shared out for them, so they are the same to the last bit."""
    for case, measured in facts.items():
        assert measured["shared"]["logits"] == measured["whole"]["logits"] and len(measured["shared"]["logits"]) > 20, case
