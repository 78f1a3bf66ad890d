"""What NVLM-X and NVLM-H ask beyond NVLM-D: each rule refuses what it is for and lets sound runs pass."""

import pytest

from nvlm_train.config import rules
from nvlm_train.config.compose import compose
from nvlm_train.config.layers import cross_layers
from nvlm_train.config.schema import CrossAttention, Language, Model
from nvlm_train.errors import ConfigError

X, H = "recipe=nvlm_x_tiny", "recipe=nvlm_h_tiny"


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose([*overrides, "stage=sft"])
    return caught.value.problems


@pytest.mark.parametrize(("layers", "cross", "expected"), [
    (80, CrossAttention(every=8), (7, 15, 23, 31, 39, 47, 55, 63, 71, 79)),
    (60, CrossAttention(every=6), (5, 11, 17, 23, 29, 35, 41, 47, 53, 59)),
    (4, CrossAttention(every=1), (0, 1, 2, 3)), (7, CrossAttention(every=3), (2, 5)), (4, CrossAttention(every=5), ()),
    (4, CrossAttention(layers=(3, 0)), (0, 3)), (4, CrossAttention(every=2, layers=()), ()),
])
def test_layers_that_read(layers, cross, expected):
    for architecture in ("nvlm_x", "nvlm_h"):
        assert cross_layers(Model(architecture=architecture, cross_attention=cross, language=Language(layers=layers))) == expected
    assert cross_layers(Model(cross_attention=cross, language=Language(layers=layers))) == ()


CROSS = "model.cross_attention."
BROKEN = {
    (X, CROSS + "every=5"): "model.cross_attention.every=5 is more than model.language.layers=4",
    (X, CROSS + "layers=[]"): "model.cross_attention.layers is empty",
    (H, CROSS + "layers=[1,4]"): "model.cross_attention.layers names 4, but model.language.layers=4 are counted from 0 to 3",
    (H, CROSS + "layers=[-1,7]"): "names -1, 7, but",
    (X, CROSS + "layers=[1,3,1]"): "model.cross_attention.layers names 1 more than once",
    (X, CROSS + "heads=3"): "model.cross_attention.kv_heads=2 must divide model.cross_attention.heads=3",
    (X, CROSS + "kv_heads=3"): "model.cross_attention.kv_heads=3 must divide model.cross_attention.heads=4",
    (X, CROSS + "kv_heads=1", "layout.tensor=2"): "layout.tensor=2 must divide model.cross_attention.kv_heads=1",
    (H, CROSS + "heads=6", CROSS + "kv_heads=3", "layout.tensor=2"):
        "layout.tensor=2 must divide model.cross_attention.kv_heads=3",
    (X, CROSS + "ffn=33", "layout.tensor=2"): "layout.tensor=2 must divide model.cross_attention.ffn=33",
    (X, "model.tags.kind=none"):
        "model.tags.kind=none with data.max_tiles=6 has no tags: set model.cross_attention.tag_mask=false",
    (H, "data.thumbnail=false"): "nvlm_h with data.max_tiles=6 needs data.thumbnail=true",
    (X, "data.pack_tiles=6"): "an image must fit into one row and its cross-attention memory; raise data.pack_tiles",
    (H, "data.max_tokens=16"): "data.max_tokens=16 leaves no room for text beside one tile of 16 tokens",
    (X, "train.trainable=[cross_atention]"): "did you mean cross_attention?",
    ("recipe=flamingo_tiny", "model.language.heads=6", "model.language.kv_heads=3", "model.language.hidden=128"):
        "needs model.language.heads=6 to divide model.language.hidden=128",
}


@pytest.mark.parametrize("overrides", BROKEN, ids=" ".join)
def test_rule_refuses(overrides):
    (problem,) = problems(*overrides)
    assert BROKEN[overrides] in problem


SOUND = [
    (X, CROSS + "layers=[0,2]"), (X, CROSS + "every=4"), (H, CROSS + "kv_heads=4"), (H, CROSS + "gate_init=-0.5"),
    (X, CROSS + "heads=8", CROSS + "kv_heads=8", "layout.tensor=4", "model.language.kv_heads=4"),
    (X, "model.tags.kind=none", CROSS + "tag_mask=false"), (X, "model.tags.kind=none", "data.max_tiles=1"),
    (H, "model.tags.kind=none"), (H, "data.thumbnail=false", "data.max_tiles=1"), (H, "model.connector.layers=1"),
    (X, "data.thumbnail=false"), (X, "data.max_tokens=12"), (X, "layout.pipeline=4"), (H, "layout.tensor=2"),
    (X, "train.trainable=[connector,cross_attention]"), (H, "train.lr_multipliers={cross_attention:10}"),
    ("recipe=nvlm_d_tiny", CROSS + "every=9"),
]


@pytest.mark.parametrize("overrides", SOUND, ids=" ".join)
def test_sound_settings_pass(overrides):
    (run,) = compose([*overrides, "stage=sft"])
    assert rules.problems(run) == []


def test_stages_share_cross_attention_but_for_who_reads_what():
    with pytest.raises(ConfigError) as caught:
        compose([X, f"stages.sft.{CROSS}every=4", "stages.sft.model.connector.resampler_tokens=4"])
    assert caught.value.problems == [
        "model.connector.resampler_tokens is 0 in pretrain and 4 in sft: stages of one run share one model",
        "model.cross_attention.every is 2 in pretrain and 4 in sft: stages of one run share one model"]
    pretrain, sft = compose([X, f"stages.sft.{CROSS}tag_mask=false", "stages.sft.model.tags.kind=none"])
    assert pretrain.model.cross_attention.tag_mask and not sft.model.cross_attention.tag_mask
