"""What `skeleton_facts` counted and stepped in its own process, against the arithmetic of parameters and memory."""

import json
from pathlib import Path

import pytest

from nvlm_train.config.compose import compose
from nvlm_train.model.accounting import parameters
from nvlm_train.model.parameters import rank_parameters
from tests.engine.launching import launch, measured
from tests.planning.layouts import LAYOUTS, MORE_LAYOUTS

SCRIPT = Path(__file__).parent / "skeleton_facts.py"

# Not followed by the formulas: the random state and the segment bounds of each attention, lists of which tile goes where.
# Per attention 16 + 8 bytes, per row a few hundred indices of 8.
SMALL_THINGS = 4096
# Of what is live beside weights, gradients and optimizer: the formulas follow the fullest moments, not every tensor in them. What
# they leave out (a gradient between two residual branches, the loss of the row before) is one or two tensors [T, H], at most 4% of
# these few layers, and shrinks with their number.
MOMENT = 0.04

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return measured(SCRIPT, tmp_path_factory.mktemp("skeleton"))


def test_every_rank_of_nvlm_d_72b_sums_up_to_the_released_models_size(facts):
    """79.38 B as listed for the released model: Qwen2 72.706, projector 0.621, encoder 5.536, dummy heads 0.516."""
    counted, expected = facts["d_72b"], parameters(compose(["recipe=nvlm_d_72b", "stage=sft"])[0].model)
    assert counted["ranks"] == 32 and not counted["wrong"]
    padding = counted["elements"] - expected.total
    parts = expected.language, expected.connector, expected.vision, padding, counted["elements"]
    assert [round(part / 1e9, 3) for part in parts] == [72.706, 0.621, 5.536, 0.516, 79.380]


def test_every_rank_of_nvlm_x_72b_holds_what_the_formula_says(facts):
    check_cross_attention(facts["x_72b"], "nvlm_x_72b")


def check_cross_attention(counted: dict, recipe: str) -> None:
    """Ten layers, grouped-query as the language model's: 2 x 8192 x (8192 + 1024) weights, a norm and a gate each."""
    expected = parameters(compose([f"recipe={recipe}", "stage=sft"])[0].model)
    assert counted["ranks"] == 8 and not counted["wrong"]
    assert counted["cross_attention"] == expected.cross_attention == 10 * (2 * 8192 * (8192 + 1024) + 8192 + 1)
    dummies = 45 * 7 * 128 * (4 * 3200 + 2)                 # per layer: [q k v] and output of 7 heads of 128, and their two norms
    assert counted["elements"] == expected.total + dummies


def test_padding_is_what_is_beyond_the_real_heads():
    """Real heads of InternViT-6B at tensor 8: four on ranks 0 to 5, one on rank 6, none on rank 7."""
    run = compose(["recipe=nvlm_d_72b", "stage=pretrain"])[0]
    dummy = [next(p for p in rank_parameters(run, 0, rank)[0] if p.name.endswith("layers.0.attention.q_norm.weight")).padding / 128
             for rank in range(8)]
    assert dummy == [0] * 6 + [3, 4]


def test_nothing_was_allocated(facts):
    """40 ranks of 72B models would hold 300 GB in bf16 alone; the process grows by code and names."""
    assert facts["grown_mib"] < 400


def test_all_layouts_were_stepped(facts):
    assert len({step["layout"] for step in facts["steps"]}) == len(LAYOUTS) == 10
    assert sum(step["stage"] > 0 for step in facts["steps"]) == 7


def test_standing_bytes_are_exact(facts):
    for step in facts["steps"]:
        check_standing(step)


def test_what_rows_keep_is_exact(facts):
    for step in facts["steps"]:
        check_kept(step)


def test_the_fullest_moment_is_met(facts):
    for step in facts["steps"]:
        check_moment(step)


def check_standing(step: dict) -> None:
    """Weights and gradients to the byte. The formula takes the data-parallel rank that holds most: by where padding falls, rank 0 may
    hold a few numbers less."""
    real, said = step["standing"], step["predicted"]
    assert (said["weights"], said["gradients"]) == (real["weights"], real["gradients"]), step["layout"]
    assert 0 <= said["optimizer"] - real["optimizer"] <= 63 * 12 * 16, step["layout"]


def check_kept(step: dict) -> None:
    assert len(step["saved"]) == len(step["predicted_saved"])
    for real, said in zip(step["saved"], step["predicted_saved"]):
        assert 0 <= real - said <= SMALL_THINGS, (step["layout"], step["stage"], real, said)


def check_moment(step: dict) -> None:
    assert step["predicted_peak"] == pytest.approx(step["peak"], rel=MOMENT), (step["layout"], step["stage"])
    standing = sum(step["standing"].values())
    assert step["predicted_peak"] + standing == pytest.approx(step["peak"] + standing, rel=0.02), (step["layout"], step["stage"])


def test_stages_exchange_hidden_states_and_room_for_the_memory(facts):
    """D: [T / 8, 1, H]. X: T = 2560 and 28 tiles of 256 tokens; H: of 256 + 8."""
    shapes = {step["layout"].split()[0][7:]: step["sent"] for step in facts["steps"] if step["sent"] and "72b" in step["layout"]}
    assert shapes == {"nvlm_d_72b": [[512, 1, 8192]], "nvlm_x_72b": [[(2560 + 28 * 256) // 8, 1, 8192]],
                      "nvlm_h_72b": [[(2560 + 28 * 264) // 8, 1, 8192]]}
    for before, after in zip(facts["steps"], facts["steps"][1:]):
        if after["stage"]:
            assert after["received"] == before["sent"]


def test_every_trained_parameter_gets_a_gradient_of_its_shape_and_no_other_does(facts):
    for step in facts["steps"]:
        assert not step["wrong_gradients"] and not step["without_gradient"], step["layout"]


def test_the_benchmark_prints_the_same_figures(facts):
    (row,) = facts["benchmark"]
    for name in ("kept", "moment", "total"):
        assert row[f"{name}_said"] == pytest.approx(row[name], rel=0.001)


def test_ranks_that_cannot_be_are_refused(facts):
    said = facts["refused"]
    assert "layout.tensor=2" in said["world"] and "there are 3" in said["world"] and not said["left"]
    assert "joined a job already" in said["joined"]


@pytest.mark.full
def test_more_layouts(tmp_path):
    done = launch(SCRIPT, 1, tmp_path / "facts.json", "more", folder=tmp_path, timeout=240)
    assert done.returncode == 0, done.output[-4000:]
    facts = json.loads((tmp_path / "facts.json").read_text())
    check_cross_attention(facts["h_72b"], "nvlm_h_72b")
    assert len({step["layout"] for step in facts["steps"]}) == len(MORE_LAYOUTS) == 25
    (few,) = facts["few"]       # without logits to speak of, a tied table's gradient is what the backward carries along
    for step in (*facts["steps"], few):
        check_standing(step)
        check_kept(step)
        check_moment(step)
        assert not step["wrong_gradients"] and not step["without_gradient"], step["layout"]
