"""What `model_checks` measured in its own process."""

import math
from pathlib import Path

import pytest
import torch

from tests.engine.launching import measured

SCRIPT = Path(__file__).parent / "model_checks.py"

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return measured(SCRIPT, tmp_path_factory.mktemp("model"))


def test_a_tile_is_seen_from_its_first_token_on(facts):
    assert facts["image_tokens"]["first_changed"] == 200


def test_loss_is_the_weighted_cross_entropy_over_the_global_weight(facts):
    got = facts["loss_by_hand"]
    assert got["weight"] == 2 * got["own_weight"]
    assert got["trained"] == pytest.approx(got["expected"], rel=1e-6)


def test_both_forms_of_packed_attention_agree(facts):
    assert facts["attention_by_hand"]["difference"] < 2e-6


def test_text_only_row_in_stage_one_has_a_zero_gradient_not_none(facts):
    got = facts["frozen_and_textual"]
    assert got["text_norm"] == 0 and not got["text_skipped"] and math.isfinite(got["text_loss"]) and not got["text_moved"]
    assert got["image_norm"] > 0 and got["changed"] == ["connector"]


def test_a_non_finite_step_is_left_out_whole(facts):
    got = facts["not_a_number"]
    assert got["skipped"] and got["weights_same"] and not got["good_skipped"]
    assert got["good_loss"] == got["reference_loss"] and got["as_if_never"]


def test_learning_rate_factor_of_zero_keeps_a_component_still(facts):
    assert facts["rates"]["moved"] == ["language"]


def test_patterns_that_match_nothing_are_refused(facts):
    assert set(facts["refused"]) == {"trainable", "lr_multipliers"}
    for key, said in facts["refused"].items():
        assert f"train.{key}: 'language.*.nrom.*' matches no parameter" in said


def test_validation_loss_is_the_training_loss_of_the_same_row(facts):
    got = facts["validation"]
    assert got["evaluated"] == pytest.approx(got["trained"], rel=1e-6)
    assert got["source"] == pytest.approx(got["trained"], rel=1e-6)


def test_empty_rows_change_nothing(facts):
    got = facts["empty_rows"]
    assert got["padded"] == pytest.approx(got["alone"], rel=1e-6) and got["nothing_skipped"]


def test_pixels_are_normalised_on_the_device_and_patches_run_row_by_row(facts):
    assert facts["normalisation"]["difference"] < 1e-5
    assert facts["normalisation"]["tokens"] == [3, 16, 128]


def test_cached_features_stand_in_for_the_tiles_they_are_of(facts):
    assert facts["cached_features"] == {"shape": [3, 64, 128], "equal": True, "other_equal": False, "encoder_runs": 0}


def test_pixel_shuffle_order_is_v2():
    """Each token joins its 2x2 block top-left, top-right, bottom-left, bottom-right; tokens run row by row (facts 1.1)."""
    from nvlm_train.model.connector import pixel_shuffle

    grid, width = 8, 3
    patches = torch.arange(grid * grid * width, dtype=torch.float32).view(1, grid * grid, width)
    got = pixel_shuffle(patches, 2)
    assert got.shape == (1, 16, 4 * width)
    for row in range(4):
        for column in range(4):
            block = [(2 * row + dy) * grid + 2 * column + dx for dy in (0, 1) for dx in (0, 1)]
            assert torch.equal(got[0, 4 * row + column], torch.cat([patches[0, i] for i in block]))
