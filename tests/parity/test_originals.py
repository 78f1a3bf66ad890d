"""Qwen2, Llama, SmolLM2, InternViT (both styles), CLIP and SigLIP against transformers' own models with the same random weights, behind
every layer; the first step's loss; greedy text.

The reference is the original in float64. The original in float32 lies off it by what rounding costs, and so do we, adding the same
products in another order: rounding errors of thousands of elements have the same size in both to within some percent (largest ratio
seen 1.08, `originals_checks.py` prints all into its JSON). So no error may be more than RATIO = 1.5 times the original's own.
What is almost right (an epsilon of 1e-5 for 1e-6, another form of GELU) is off by ten times and more, which is tested too.
"""

import importlib.util
from pathlib import Path

import pytest

from tests.engine.launching import measured

pytestmark = [pytest.mark.distributed, pytest.mark.slow,
              pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers has the originals")]
SCRIPT = Path(__file__).parent / "originals_checks.py"
RATIO = 1.5
LANGUAGES = ("Qwen2", "Qwen2, tied", "SmolLM2", "Llama")
VISIONS = ("InternViT-6B", "InternViT-300M", "CLIP", "SigLIP")
SLIPS = ("epsilon", "rotary base", "GELU's form", "CLIP's GELU", "SigLIP's GELU", "CLIP's epsilon", "colours")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    return measured(SCRIPT, tmp_path_factory.mktemp("originals"))


def ratios(facts: dict) -> dict[str, float]:
    """Place -> our error over theirs, which is that of float32: neither none nor more than a few dozen roundings."""
    assert list(facts["ours"]) == list(facts["theirs"]) and all(1e-8 < error < 2e-6 for error in facts["theirs"].values())
    return {place: facts["ours"][place] / error for place, error in facts["theirs"].items()}


@pytest.mark.parametrize("name", LANGUAGES)
def test_language_model_is_the_original(found, name):
    facts = found["language"][name]
    places = ratios(facts)
    assert list(places) == ["layer 0", "layer 1", "layer 2", "layer 3", "final norm", "logits"]
    assert max(places.values()) < RATIO, places
    assert facts["unused"] == (["lm_head.weight"] if name in ("Qwen2, tied", "SmolLM2") else []), "tied: the embedding itself"


@pytest.mark.parametrize("name", VISIONS)
def test_encoder_is_the_original(found, name):
    facts = found["vision"][name]
    places = ratios(facts)
    layers = 3 if name == "CLIP" else 4
    assert list(places) == [f"layer {number}" for number in range(layers)] + ["feature"]
    assert max(places.values()) < RATIO, places
    counted, stated = facts["parameters"]
    assert counted == stated


def test_what_no_encoder_takes_over(found):
    """Of CLIP the last layer, which LLaVA leaves out, and the norm of the class token."""
    unused = {name: facts["unused"] for name, facts in found["vision"].items()}
    left_out = unused.pop("CLIP")
    assert left_out and all(name.startswith(("encoder.layers.3.", "post_layernorm.")) for name in left_out)
    assert not any(unused.values())


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_would_be_seen(found, slip):
    assert max(ratios(found["slips"][slip]).values()) > 4 * RATIO


@pytest.mark.parametrize("name", LANGUAGES)
def test_loss_of_the_first_step_is_the_originals(found, name):
    """Two texts packed into a row here, one by one there. A cross-entropy moves by at most twice what the logits do; its own exponentials
    and sums are float32 (eight units of 2^-24)."""
    facts = found["language"][name]
    assert abs(facts["loss"] - facts["exact loss"]) < 2 * facts["logits off"] + 8 * 2**-24 * facts["exact loss"]
    assert facts["logits off"] < 1e-4 * facts["exact loss"]


@pytest.mark.parametrize("name", LANGUAGES)
def test_gradient_of_the_first_step_is_the_originals(found, name):
    """The norm is off by no more than the gradient, which went through as many products as the logits and back."""
    facts = found["language"][name]
    assert facts["norm"] == pytest.approx(facts["exact norm"], rel=10 * facts["theirs"]["logits"])


@pytest.mark.parametrize("name", LANGUAGES)
def test_greedy_text_is_the_originals(found, name):
    facts = found["language"][name]["greedy"]
    assert facts["lead"] > 10 * found["language"][name]["logits off"], "two tokens too near for any two implementations to agree"
    assert facts["ours"] == facts["theirs"]
    assert all(len(text) == 20 for text in facts["ours"])
    assert len({token for text in facts["ours"] for token in text}) > 8, "texts that repeat one token prove little"
