"""What `cross_checks` measured in its own process."""

from pathlib import Path

import pytest

from tests.engine.launching import measured

SCRIPT = Path(__file__).parent / "cross_checks.py"

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return measured(SCRIPT, tmp_path_factory.mktemp("cross"))


def test_text_only_logits_are_bit_equal_to_the_language_model_alone(facts):
    """With closed gates, and after training with a frozen language model whatever the gates: text reads nothing."""
    assert len(facts["text_only"]) == 5 and all(facts["text_only"].values()), facts["text_only"]


def test_closed_gates_hide_the_memory_and_open_ones_do_not(facts):
    assert facts["closed_gates_hide_the_memory"] == {"0.0": True, "0.3": False}


@pytest.mark.parametrize(("architecture", "second_tile_seen_from"), [("nvlm_d", 170), ("nvlm_x", 170), ("nvlm_h", 196)])
def test_packed_samples_are_isolated_bit_for_bit(facts, architecture, second_tile_seen_from):
    assert facts["isolation"][architecture] == {
        "neighbour_equal": True, "own_changed": True, "tile_1_changes": [second_tile_seen_from, 330]}


def test_a_tag_reads_its_own_tile_and_the_text_behind_reads_all(facts):
    """Segments: before, tag of tile 1, tag of tile 2, text behind, padding."""
    assert facts["tags_read_their_tile"] == {"1": [False, True, False, True, False], "2": [False, False, True, True, False]}


def test_in_stage_one_nothing_below_the_first_cross_attention_has_a_gradient(facts):
    got = facts["gradients_in_stage_one"]
    assert got["nvlm_x"] == {"first_cross": 1, "layers": [False, True, True, True]}
    assert got["nvlm_d"]["layers"] == got["nvlm_h"]["layers"] == [True] * 4    # the connector's tokens stand in the sequence


def test_recomputation_changes_no_gradient(facts):
    for name, (stored, recomputed) in facts["recompute"].items():
        assert stored > 0 and recomputed == pytest.approx(stored, rel=1e-6), name


def test_parts_computed_again_change_nothing_and_keep_less(facts):
    """The same operations on the same numbers: the same losses and norms to the last bit. All parts together keep least."""
    found = dict(facts["recomputed_parts"])
    frozen = found.pop("frozen")
    plain, *others = found.values()
    assert len(others) == 6
    for other in others:
        assert other["step"] == plain["step"] and 0 < other["saved"] < plain["saved"]
    assert others[-1]["saved"] == min(other["saved"] for other in others)
    assert frozen["with"] == frozen["without"] > 0


def test_what_is_frozen_keeps_nothing(facts):
    """The encoder, and all below NVLM-X's first cross-attention; the layer of it and those behind carry gradients, so they keep."""
    found = facts["frozen_keeps_nothing"]
    first = found["first_cross"]
    assert found["vision"] == 0 and first > 0
    assert [found[f"layer {number}"] > 0 for number in range(4)] == [number >= first for number in range(4)]


def test_both_forms_of_cross_attention_agree_with_a_dense_mask(facts):
    """float32 over at most 20 keys: a few units of 2^-24 per term."""
    got = facts["dense_attention"]
    assert got["by_span"] < 1e-6 and got["one_call"] < 1e-6 and got["nothing_is_zero"]


def test_impossible_spans_are_refused(facts):
    assert all("spans ascend and are not empty" in text for text in facts["refused_spans"].values())
