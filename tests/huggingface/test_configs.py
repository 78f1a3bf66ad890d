"""config.json to settings and back: published files are read right, and what is not implemented is refused with the reason."""

from dataclasses import replace

import pytest

from nvlm_train.config.compose import compose
from nvlm_train.config.schema import Connector, CrossAttention, Language, Model, Vision
from nvlm_train.engine.weights_folder import differences
from nvlm_train.errors import ConfigError
from nvlm_train.huggingface.configs import read_config, write_config
from nvlm_train.huggingface.language_config import write_language
from nvlm_train.huggingface.vision_config import write_preprocessor, write_vision

# As published, shortened by what says nothing of the model (token ids, dtype, initialisation).
QWEN2_7B = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 3584,
    "intermediate_size": 18944, "max_position_embeddings": 32768, "max_window_layers": 28, "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 131072,
    "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 152064}
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "hidden_act": "silu", "hidden_size": 576,
    "intermediate_size": 1536, "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 1e-5,
    "rope_interleaved": False, "rope_scaling": None,
    "rope_theta": 100000, "tie_word_embeddings": True, "vocab_size": 49152}
INTERNVIT_6B = {
    "architectures": ["InternVisionModel"], "hidden_act": "gelu", "hidden_size": 3200, "image_size": 448,
    "initializer_factor": 0.1, "intermediate_size": 12800, "layer_norm_eps": 1e-6, "model_type": "intern_vit_6b",
    "num_attention_heads": 25, "num_channels": 3, "num_hidden_layers": 45, "patch_size": 14, "qk_normalization": True,
    "qkv_bias": False}
CLIP_L_336 = {
    "model_type": "clip", "projection_dim": 768, "text_config": {"hidden_size": 768},
    "vision_config": {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "num_attention_heads": 16,
                      "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768}}
SIGLIP_SO400M = {
    "model_type": "siglip", "text_config": {}, "vision_config": {
        "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "model_type": "siglip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14}}


def test_published_language_models_are_read():
    assert read_config(QWEN2_7B).language == Language(
        family="qwen2", layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, ffn=18944, vocab=152064, rope_base=1e6,
        norm_eps=1e-6, qkv_bias=True, tie_embeddings=False)
    assert read_config(SMOLLM2).language == Language(
        family="llama", layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, ffn=1536, vocab=49152, rope_base=1e5,
        norm_eps=1e-5, qkv_bias=False, tie_embeddings=True)


def test_published_encoders_are_read():
    assert read_config(INTERNVIT_6B).vision == Vision(family="internvit")
    clip = read_config(CLIP_L_336).vision
    assert (clip.layers, clip.tile_size, clip.patch, clip.activation, clip.norm_eps) == (23, 336, 14, "quick_gelu", 1e-5)
    assert clip.first_norm and not clip.final_norm and clip.class_token and clip.mean[0] == pytest.approx(0.48145466)
    siglip = read_config(SIGLIP_SO400M).vision
    assert (siglip.layers, siglip.tile_size, siglip.activation, siglip.final_norm) == (27, 378, "gelu_tanh", True)
    assert read_config(CLIP_L_336, layers=24).vision.layers == 24
    assert read_config(CLIP_L_336, {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}).vision.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("choice, config", [
    ("language=qwen2_7b", QWEN2_7B), ("language=smollm2_135m", SMOLLM2), ("vision=internvit_6b", INTERNVIT_6B),
    ("vision=clip_l_336", CLIP_L_336), ("vision=siglip_so400m", SIGLIP_SO400M)], ids=lambda value: value if isinstance(value, str) else "")
def test_an_entry_takes_what_is_imported_for_it(choice, config):
    """The sizes in recipes/ and those that an import reads are the same, norms' epsilon and colours included."""
    part = choice.partition("=")[0]
    model = compose(["recipe=nvlm_d_2b", "stage=sft", choice])[0].model
    assert differences(read_config(config), model, [part]) == []
    assert getattr(read_config(config), part).family == getattr(model, part).family


def test_the_published_nvlm_d_is_read_whole():
    llm = {**QWEN2_7B, "hidden_size": 8192, "intermediate_size": 29568, "num_attention_heads": 64, "num_hidden_layers": 80,
           "num_key_value_heads": 8}
    sizes = read_config({
        "architectures": ["NVLM_D"], "model_type": "NVLM_D", "llm_config": llm, "vision_config": INTERNVIT_6B, "select_layer": -1,
        "force_image_size": 448, "downsample_ratio": 0.5, "ps_version": "v2", "use_thumbnail": True, "max_dynamic_patch": 6})
    assert sizes.components == ("vision", "connector", "language") and sizes.architecture == "nvlm_d"
    assert sizes.model() == Model(language=replace(Language(), family="qwen2"))


VISION = Vision(layers=2, hidden=24, heads=3, ffn=40, tile_size=16, patch=4)
CLIP = replace(VISION, family="clip", norm="layer", qkv_bias=True, qk_norm=False, layer_scale=False, first_norm=True,
               patch_bias=False, activation="quick_gelu", norm_eps=1e-5)
SIGLIP = replace(CLIP, family="siglip", first_norm=False, final_norm=True, class_token=False, patch_bias=True,
                 activation="gelu_tanh")
LANGUAGE = Language(family="qwen2", layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab=64, rope_base=1e6)
LLAMA = replace(LANGUAGE, family="llama", qkv_bias=False, head_dim=16, tie_embeddings=True)
CROSS = CrossAttention(layers=(0, 1), heads=4, kv_heads=4, gate_init=0.0, qk_norm=True, ffn=16, tag_mask=False)


@pytest.mark.parametrize("language", [LANGUAGE, LLAMA], ids=["qwen2", "llama"])
def test_a_language_model_comes_back_as_it_was(language):
    assert read_config(write_language(language)).language == language


@pytest.mark.parametrize("vision", [VISION, CLIP, SIGLIP], ids=["internvit", "clip", "siglip"])
def test_an_encoder_comes_back_as_it_was(vision):
    assert read_config(write_vision(vision), write_preprocessor(vision), vision.layers).vision == vision


@pytest.mark.parametrize("model", [
    Model(vision=VISION, language=LANGUAGE), Model(vision=CLIP, language=LLAMA, connector=Connector(hidden=20, norm_eps=1e-6)),
    Model("nvlm_x", VISION, Connector(layers=1), CROSS, LANGUAGE), Model("nvlm_h", SIGLIP, Connector(shuffle=4), CROSS, LLAMA),
], ids=["d", "d, CLIP and another connector", "x", "h"])
def test_a_whole_model_comes_back_as_it_was(model):
    found = read_config(write_config(model), write_preprocessor(model.vision)).model()
    assert found == (replace(model, cross_attention=CrossAttention()) if model.architecture == "nvlm_d" else model)


def test_the_library_itself_reads_what_is_written():
    transformers = pytest.importorskip("transformers", reason="the library that these files are for is not installed")
    for language in (LANGUAGE, LLAMA):
        config = transformers.AutoConfig.for_model(**write_language(language))
        assert read_config(config.to_dict()).language == language
    for vision in (CLIP, SIGLIP):
        config = transformers.AutoConfig.for_model(**write_vision(vision))
        assert read_config(config.to_dict(), write_preprocessor(vision), vision.layers).vision == vision


@pytest.mark.parametrize("change, reason", [
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling of type 'dynamic'"),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_parameters of type 'llama3'"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu'"), ({"attention_bias": True}, "attention_bias=True"),
    ({"mlp_bias": True}, "mlp_bias=True"), ({"use_sliding_window": True, "sliding_window": 4096}, "sliding window of 4096"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
    ({"num_attention_heads": 7}, "num_attention_heads=7 does not divide hidden_size=576"),
    ({"num_key_value_heads": 2}, "num_key_value_heads=2 does not divide num_attention_heads=9"),
    ({"hidden_size": "wide"}, "hidden_size is 'wide'"), ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
    ({"head_dim": 63}, "heads of 63 channels"), ({"rope_interleaved": True}, "rope_interleaved=True"),
    ({"model_type": "lama"}, "did you mean llama"), ({"model_type": "qwen2_moe"}, "no family that is implemented"),
    ({"model_type": None}, "no family that is implemented"),
])
def test_what_is_not_implemented_in_a_language_model_is_refused(change, reason):
    with pytest.raises(ConfigError) as error:
        read_config({**SMOLLM2, **change})
    assert reason in str(error.value)


@pytest.mark.parametrize("change, reason", [
    ({"hidden_act": "relu"}, "hidden_act='relu'"), ({"norm_type": "batch_norm"}, "norm_type='batch_norm'"),
    ({"num_attention_heads": 24}, "num_attention_heads=24 does not divide"), ({"num_channels": 1}, "num_channels=1"),
    ({"image_size": 8}, "image_size=8 is smaller"),
])
def test_what_is_not_implemented_in_an_encoder_is_refused(change, reason):
    with pytest.raises(ConfigError) as error:
        read_config({**INTERNVIT_6B, **change})
    assert reason in str(error.value)


def test_all_reasons_are_told_together():
    with pytest.raises(ConfigError) as error:
        read_config({**SMOLLM2, "hidden_act": "relu", "mlp_bias": True, "rope_scaling": {"rope_type": "yarn"}})
    assert len(error.value.problems) == 3
    broken = write_config(Model(vision=VISION, language=LANGUAGE))
    broken["llm_config"]["hidden_act"], broken["vision_config"]["norm_type"] = "relu", "none"
    with pytest.raises(ConfigError) as error:
        read_config({**broken, "ps_version": "v1", "downsample_ratio": 0.3})
    assert [part in str(error.value) for part in ("llm_config", "vision_config", "'v1'", "0.3")] == [True] * 4


def test_settings_without_a_published_form_are_not_written():
    with pytest.raises(ConfigError, match="set model.language.family=qwen2"):
        write_language(replace(LLAMA, qkv_bias=True))
    with pytest.raises(ConfigError, match="first_norm"):
        write_vision(replace(VISION, first_norm=True))


def test_layers_are_an_encoders():
    with pytest.raises(ConfigError, match="layers=3"):
        read_config(QWEN2_7B, layers=3)
    with pytest.raises(ConfigError, match="46 layers are asked for and the encoder has 45"):
        read_config(INTERNVIT_6B, layers=46)
