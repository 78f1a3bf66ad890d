"""The engine with fp8 products, on the CPU (`fp8_checks`, through the seam of `fp8_seam`: no setting does it).

What may differ. fp8 rounds by a relative 2^-4 (E4M3) and 2^-3 (E5M2) at most, in the root mean square by 1/sqrt(3) of that: a product
by 0.051, a gradient's by 0.081. At random initial values the logits are small, and losses of whole rows differ by some 1e-4; their
gradients' norms, over four layers, by some per cent.
"""

import json
from pathlib import Path

import pytest

from tests.engine.launching import launch

SCRIPT = Path(__file__).with_name("fp8_checks.py")


def run(folder: Path, ranks: int, *checks: str, timeout: int = 300) -> dict:
    done = launch(SCRIPT, ranks, folder / "facts.json", *checks, folder=folder, timeout=timeout)
    assert done.returncode == 0 and not done.survivors, done.output[-4000:]
    return json.loads((folder / "facts.json").read_text())


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return run(tmp_path_factory.mktemp("fp8"), 1, "casts", "frozen", "not_a_number", "exchange:plain:fp8")


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    return run(tmp_path_factory.mktemp("fp8_more"), 1, "recomputed", "exchange:fp8:plain", "reading:nvlm_h_tiny", "reading:nvlm_x_tiny", "summed_in_the_product")


def close(steps: list, plain: list) -> None:
    """Loss and gradient norm of each step: not the same, and no further off than the module says."""
    for (loss, norm), (other_loss, other_norm) in zip(steps, plain, strict=True):
        assert loss != other_loss
        assert loss == pytest.approx(other_loss, rel=1e-3) and norm == pytest.approx(other_norm, rel=0.1)


@pytest.mark.slow
@pytest.mark.distributed
class TestOnOneRank:
    def test_weights_are_cast_once_a_step_and_inputs_once_a_row(self, facts):
        """Four layers with two linear layers each, steps of two rows."""
        found = facts["casts"]
        assert found["products"] == 8
        assert found["first step"] == found["second step"] == [8, 16]

    def test_after_a_step_its_weights_are_cast_anew(self, facts):
        """Torch does not tell: the optimizer writes through a buffer. So the engine does."""
        found = facts["casts"]
        assert found["moved"] and not found["told by torch"] and found["fresh"]

    def test_between_steps_casts_stay_until_a_weight_is_written(self, facts):
        assert facts["casts"]["second logits"] == [0, 8]
        assert facts["casts"]["after a write in the open"] == [1, 8]

    def test_frozen_weights_are_cast_once_for_all_steps(self, facts):
        """Sixteen layers, two steps of two rows; loading is the one thing that writes them."""
        found = facts["frozen"]
        assert found["fp8 casts"] == [16, 64] and found["plain casts"] == [0, 0] and found["after a load"] == [16, 32]
        close(found["fp8"], found["plain"])

    def test_a_step_that_is_not_finite_is_left_out(self, facts):
        found = facts["not_a_number"]
        assert found["skipped"] and found["same"] and found["loss"] != found["loss"]

    def test_a_checkpoint_without_fp8_goes_on_with_it(self, facts):
        found = facts["exchange:plain:fp8"]
        assert found["names"] and found["equal"]
        close(found["loaded"], found["undisturbed"])


@pytest.mark.full
@pytest.mark.distributed
class TestMore:
    def test_a_checkpoint_with_fp8_goes_on_without(self, more):
        found = more["exchange:fp8:plain"]
        assert found["names"] and found["equal"]
        close(found["loaded"], found["undisturbed"])

    def test_recomputed_layers_are_the_same_bit_for_bit(self, more):
        assert more["recomputed"]["selective"] == more["recomputed"]["full"] == more["recomputed"]["none"]

    @pytest.mark.parametrize("recipe", ["nvlm_h_tiny", "nvlm_x_tiny"])
    def test_cross_attention_stays_as_it_is(self, more, recipe):
        found = more[f"reading:{recipe}"]
        assert found["inside"] == ["mlp.linear_fc1", "mlp.linear_fc2", "self_attention.linear_proj", "self_attention.linear_qkv"]
        close(found["fp8"], found["plain"])

    def test_other_layers_may_add_up_their_gradients_in_the_product(self, more):
        """fp32 throughout on the CPU: sums in another order."""
        for step, other in zip(*more["summed_in_the_product"].values(), strict=True):
            assert step == pytest.approx(other, rel=1e-5)

    def test_layers_split_over_two_ranks(self, tmp_path):
        """Each rank has its own scales, so roundings differ from the whole model's. All are as near to the model without fp8: a layer's two
        branches have two products each, off by 0.051 of themselves, so a branch is off by 0.072 and by what came into it; errors of
        eight branches, were each as large as all that it is added to, make sqrt(8) x 0.072 = 0.2 of the logits. A wrong slice would make 1.
        Slicing the sequence changes no rounding: the gathered rows are the whole ones; sums of norms' gradients come in another order."""
        found = run(tmp_path, 2, "layouts")["layouts"]
        assert found["plain"]["off"] == 0 and found["slicing"]
        for name in ("whole", "split", "sliced"):
            assert 0.01 < found[name]["off"] < 0.2
            close(found[name]["steps"], found["plain"]["steps"])
        assert found["split"]["off"] != found["whole"]["off"]
        for step, other in zip(found["sliced"]["steps"], found["split"]["steps"], strict=True):
            assert step == pytest.approx(other, rel=1e-5)

    def test_three_hundred_steps_learn_what_bf16_learns(self, tmp_path):
        """A gradient with an independent error of e times its size points less well: at a given length of step (Adam's) the loss
        falls by 1 / sqrt(1 + e^2) of what it would. Here e^2 is at most 0.08: a weight's gradient has one product of 0.081, the way
        back to it eight at most (two in each of four layers) of 0.081, and the activations come by eight of 0.051. So by every
        step the fall is at least 0.96 of bf16's; means over twenty steps, since single steps see different samples' luck."""
        found = run(tmp_path, 1, "curve:300", timeout=900)["curve:300"]
        plain, fp8 = ([sum(losses[at:at + 20]) / 20 for at in range(0, 300, 20)] for losses in (found["plain"], found["fp8"]))
        first = found["plain"][0]
        assert first - plain[-1] > 1        # it learns at all
        for ours, theirs in zip(fp8, plain, strict=True):
            assert abs(ours - theirs) <= 0.04 * (first - theirs) + 1e-3 * first
