"""The engine under kernels=te and apex, on stand-ins that compute with torch on the CPU (`fake_te`, `fake_apex`).

Shown is wiring: sizes, names, gradients' way into the buffer, what attention is told, checkpoints. Kernels are for tests/gpu.
The stand-ins compute in fp32 as torch's path does, in another order here and there: 24 bits of mantissa, sums of some hundred
terms, so 1e-5 of a value of size one. After steps of Adam differences of gradients near zero are as large as a step, so of the
steps the losses and norms are compared: 1e-5 of them.
"""

import inspect
import json
import sys
from pathlib import Path

import pytest

from tests.engine.launching import launch
from tests.kernels import fake_te
from tests.kernels.te_signatures import SIGNATURES

SCRIPT = Path(__file__).with_name("engine_checks.py")
SAME = 1e-5


def run(folder: Path, ranks: int, *checks: str) -> dict:
    done = launch(SCRIPT, ranks, folder / "facts.json", *checks, folder=folder, timeout=300)
    assert done.returncode == 0 and not done.survivors, done.output[-4000:]
    return json.loads((folder / "facts.json").read_text())


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return run(tmp_path_factory.mktemp("wiring"), 1, "parity:nvlm_h_tiny", "exchange:torch:te", "exchange:te:torch", "patterns",
               "frozen", "fp8:current")


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    return run(tmp_path_factory.mktemp("more"), 1, "parity:nvlm_d_tiny", "exchange:apex:te", "exchange:te:apex", "fp8:delayed",
               "fp8:mxfp8", "recomputed", "tied")


def alike(steps: list, expected: list) -> None:
    """Loss and gradient norm of each step."""
    for step, other in zip(steps, expected, strict=True):
        assert step == pytest.approx(other, rel=SAME)


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_stand_in_has_the_real_signatures(name):
    """Attention's forward has parameters that nobody here passes; those it has stand in the same order."""
    found = tuple(inspect.signature(fake_te.named(name)).parameters)
    assert found == tuple(word for word in SIGNATURES[name] if word in found)
    assert found == SIGNATURES[name] or name.endswith("DotProductAttention.forward")


def same_under_all_kernels(of: dict) -> None:
    for kernels in ("te", "apex"):
        assert of[kernels]["names"] == of["torch"]["names"]
        for row, other in zip(of[kernels]["logits"], of["torch"]["logits"], strict=True):
            assert row == pytest.approx(other, abs=SAME)
        alike(of[kernels]["steps"], of["torch"]["steps"])


def ran_as_planned(of: dict) -> None:
    """One pass for the logits and four with gradients. A layer has two linear layers with the norm inside and two without; a
    reading one has a norm and three linear layers more, which are Megatron-Core's."""
    layers, reading = of["te"]["layers"], of["te"]["reading"]
    assert of["te"]["te"] == {"TELayerNormColumnParallelLinear": 10 * layers, "TERowParallelLinear": 10 * layers,
                              "attention": 5 * layers}
    assert of["te"]["fused"] and of["te"]["samples"] == [of["te"]["edges"]]
    assert of["torch"]["te"] == of["torch"]["apex"] == of["te"]["apex"] == of["apex"]["te"] == {}
    assert of["apex"]["apex"] == {"norm": 5 * (2 * layers + reading + 1), "weight gradient": 4 * (4 * layers + 3 * reading + 1)}
    assert [of[name]["adam"] for name in ("torch", "te", "apex")] == ["optimizer", "fake_te", "fake_apex"]


def goes_on(found: dict) -> None:
    """Weights, moments and step counts; and nothing that only Transformer Engine could read (its extra state is a pickle)."""
    assert found["extra"] == ["NoneType"] and found["steps"] == [2]
    alike(found["loaded"], found["undisturbed"])


def in_recipe(found: dict, own: str, config: list) -> None:
    """All of the decoder's, with sides that divide by 16; weights are quantised anew in each step's first row of
    two."""
    assert found["recipes"] == [own] and found["config"] == config and found["sides"] == [0]
    assert found["calls"] > 0 and found["first"] * 2 == found["calls"]


@pytest.mark.slow
@pytest.mark.distributed
class TestOnStandIns:
    def test_training_is_the_same_under_all_kernels(self, facts):
        same_under_all_kernels(facts["parity:nvlm_h_tiny"])

    def test_every_part_ran_on_what_the_plan_names(self, facts):
        ran_as_planned(facts["parity:nvlm_h_tiny"])

    @pytest.mark.parametrize("pair", ["torch:te", "te:torch"])
    def test_a_run_goes_on_under_other_kernels(self, facts, pair):
        goes_on(facts[f"exchange:{pair}"])

    def test_patterns_speak_of_a_norm_by_one_name(self, facts):
        norms = [f"language.decoder.layers.{number}.input_layernorm.weight" for number in range(4)]
        assert facts["patterns"] == {"trained": norms, "still": norms}

    def test_a_frozen_language_model_trains_its_connector_alike(self, facts):
        alike(facts["frozen"]["te"], facts["frozen"]["torch"])

    def test_fp8_is_the_decoders_linear_layers(self, facts):
        in_recipe(facts["fp8:current"], "Float8CurrentScaling", ["hybrid", "tensorwise"])


@pytest.mark.full
@pytest.mark.distributed
class TestMoreOnStandIns:
    def test_nvlm_d(self, more):
        same_under_all_kernels(more["parity:nvlm_d_tiny"])
        ran_as_planned(more["parity:nvlm_d_tiny"])

    @pytest.mark.parametrize("pair", ["apex:te", "te:apex"])
    def test_a_run_goes_on_under_other_kernels(self, more, pair):
        goes_on(more[f"exchange:{pair}"])

    @pytest.mark.parametrize(("recipe", "own", "config"), [
        ("delayed", "TEDelayedScaling", ["hybrid", "delayed"]), ("mxfp8", "MXFP8BlockScaling", ["e4m3", "mxfp8"])])
    def test_other_recipes_of_fp8(self, more, recipe, own, config):
        in_recipe(more[f"fp8:{recipe}"], own, config)

    def test_recomputed_layers_add_gradients_once(self, more):
        assert more["recomputed"]["selective"] == more["recomputed"]["full"] == more["recomputed"]["none"]

    def test_tied_embeddings_keep_both_gradients(self, more):
        alike(more["tied"]["apex"]["steps"], more["tied"]["torch"]["steps"])
        assert more["tied"]["apex"]["sum"] == pytest.approx(more["tied"]["torch"]["sum"], rel=SAME)

    def test_split_layers_and_sliced_rows(self, tmp_path):
        found = run(tmp_path, 2, "sliced")
        assert found["ranks"] == 2
        alike(found["sliced"]["te"], found["sliced"]["torch"])


def test_the_stand_ins_stay_in_their_own_process():
    assert not hasattr(sys.modules.get("transformer_engine"), "CALLS")
