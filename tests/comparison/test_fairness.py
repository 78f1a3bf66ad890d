"""Which comparisons are refused, and what is told of those that are not."""

import pytest
from comparison_fakes import comparison

from nvlm_train.comparison.designs import designs_of, processes_of
from nvlm_train.comparison.fairness import ALL, as_text, differences, refuse_unfair, shared_settings
from nvlm_train.config.request import Comparison
from nvlm_train.errors import ConfigError

TINY = "recipe=nvlm_d_tiny"


def designs(*own: str, shared=()):
    """nvlm_d_tiny as it is, and with these words."""
    return designs_of(Comparison({"one": (TINY,), "other": (TINY, *own)}), list(shared))


@pytest.mark.parametrize(("words", "told"), [
    (["train.steps=50"], "train.steps (pretrain) is 30 in one, 50 in other; 1 more of train.steps differ"),
    (["stages.sft.train.global_batch=8"], "train.global_batch (sft) is 16 in one, 8 in other"),
    (["train.seed=7"], "train.seed is 1234 in one, 7 in other"),
    (["stages.sft.data.blend.text.weight=0.3"], "data.blend.text.weight (sft) is 0.2 in one, 0.3 in other"),
    (["~stages.sft.data.blend.text"], "data.blend (sft) is images, text in one, images in other; 3 more of data.blend differ"),
    (["data.validation.tiny.path=shards/held_out"],
     "data.validation.tiny.path is builtin:tiny/validation in one, shards/held_out in other"),
    (["model.tokenizer=mine.json"], "model.tokenizer is tiny in one, mine.json in other"),
    (["model.language.weights=llm.safetensors"], "model.language.weights is not set in one, llm.safetensors in other"),
    (["model.vision.weights=vit.safetensors"], "model.vision.weights is not set in one, vit.safetensors in other"),
    (["model.language.layers=6"], "model.language.layers is 4 in one, 6 in other"),
])
def test_what_must_be_the_same_is_refused_with_both_values(words, told):
    with pytest.raises(ConfigError) as error:
        refuse_unfair(designs(*words))
    assert error.value.problems[0].startswith("these designs cannot be compared")
    assert error.value.problems[1:] == [told]


def test_the_same_sources_in_another_order_are_another_order_of_samples():
    blend = "stages.sft.data.blend={{{},{}}}"
    text, images = "text:{path:builtin:tiny/text,weight:0.2}", "images:{path:builtin:tiny/sft,weight:0.8}"
    turned = designs_of(Comparison({"one": (TINY, blend.format(images, text)), "other": (TINY, blend.format(text, images))}), [])
    with pytest.raises(ConfigError, match=r"data.blend \(sft\) is images, text in one, text, images in other"):
        refuse_unfair(turned)


def test_every_refusal_is_told_at_once():
    with pytest.raises(ConfigError) as error:
        refuse_unfair(designs("train.steps=50", "train.seed=7", "model.tokenizer=mine.json"))
    assert len(error.value.problems) == 4


def test_designs_of_other_stages_are_refused():
    with pytest.raises(ConfigError, match="one: pretrain, sft; other: sft"):
        refuse_unfair(designs("stage=sft"))


def test_designs_rates_and_tags_may_differ_and_are_told():
    found = designs("stages.sft.model.tags.kind=none", "train.lr=0.5", "train.min_lr=0.1", "train.beta1=0.8",
                    "layout.pipeline=2", "stages.sft.train.trainable=[connector]")
    refuse_unfair(found)
    told = {(difference.stage, difference.key): tuple(difference.values.values()) for difference in differences(found)}
    assert told[ALL, "train.beta1"] == ("0.9", "0.8")                           # alike in both stages: once
    assert told["pretrain", "train.lr"] == ("0.002", "0.5") and told["sft", "train.lr"] == ("0.001", "0.5")
    assert told["sft", "model.tags.kind"] == ("1d", "none")
    assert told["sft", "train.trainable"] == ("connector, language", "connector")
    assert told[ALL, "layout.pipeline"] == ("1", "2")
    assert not {key for _, key in told} & {"recipe", "run.dir", "stage"}
    assert len(told) == 8


def test_the_tiny_recipes_of_every_design_can_be_compared(tmp_path):
    names = ["nvlm_d_tiny", "nvlm_x_tiny", "nvlm_h_tiny", "llava_tiny", "internvl2_tiny", "flamingo_tiny", "llama3v_tiny"]
    found = designs_of(comparison(tmp_path, *names), [])
    refuse_unfair(found)
    assert {"model.architecture", "model.connector.resampler_tokens"} <= {difference.key for difference in differences(found)}
    assert shared_settings(found)["sft"] == {"data": "images 0.8, text 0.2", "steps": "40 of 16 samples", "tokenizer": "tiny",
                                             "vision encoder": "random weights", "language model": "random weights"}


def test_problems_of_a_design_carry_its_name():
    with pytest.raises(ConfigError, match="other: train.sheed: unknown key; did you mean"):
        designs("train.sheed=7")


def test_processes_suit_every_layout():
    found = designs("layout.pipeline=2")
    assert processes_of(found, None) == 2 and processes_of(found, 4) == 4
    with pytest.raises(ConfigError, match="processes=3 does not suit the layouts of all designs: take a multiple of 2"):
        processes_of(found, 3)


def test_values_as_text():
    assert [as_text(value) for value in (True, None, 0.00015, ("a", "b"), [], 3)] == ["yes", "not set", "0.00015", "a, b", "none", "3"]
