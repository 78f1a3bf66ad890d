"""Every language model and vision encoder of the recipes: complete, of the published size, and exchangeable on any recipe."""

import re
from dataclasses import replace

import pytest
import yaml

from nvlm_train.config.compose import compose, recipes_dir
from nvlm_train.config.rules import CHOICES
from nvlm_train.config.schema import Run
from nvlm_train.config.typed import kind_at
from nvlm_train.data.templates import TEMPLATES
from nvlm_train.geometry import geometry_of
from nvlm_train.huggingface.language_config import read_language, write_language
from nvlm_train.huggingface.vision_config import read_vision, write_vision
from nvlm_train.model.accounting import parameters

HOME_MADE = {"tiny", "tiny_6b", "demo"}     # not published: no source, licence or folder of weights
NAMES = {group: {path.stem for path in (recipes_dir() / group).glob("*.yaml")} for group in ("language", "vision")}

# Parameters of the published safetensors, a tied output layer counted once.
LANGUAGE = {
    "qwen2_0_5b": 494_032_768, "qwen2_1_5b": 1_543_714_304, "qwen2_7b": 7_615_616_512, "qwen2_72b": 72_706_203_648,
    "qwen2_5_0_5b": 494_032_768, "qwen2_5_1_5b": 1_543_714_304, "qwen2_5_3b": 3_085_938_688, "qwen2_5_7b": 7_615_616_512,
    "qwen2_5_14b": 14_770_033_664, "qwen2_5_32b": 32_763_876_352, "qwen2_5_72b": 72_706_203_648,
    "smollm2_135m": 134_515_008, "smollm2_360m": 361_821_120, "smollm2_1_7b": 1_711_376_384,
    "yi_34b": 34_388_917_248, "llama3_8b": 8_030_261_248,
}
# Of an encoder as it is published, and what this package leaves of it: CLIP's text model and last layer and norm, SigLIP's text
# model and pooling head.
CLIP_VISION, CLIP_LAYER, CLIP_LAST_NORM = 303_507_456, 12_596_224, 2 * 1024
SIGLIP_VISION = 428_225_600
SIGLIP_HEAD = 1152 + 4 * (1152**2 + 1152) + 2 * 1152 + (2 * 1152 * 4304 + 4304 + 1152)      # a probe that reads, a norm, an MLP
# InternVL-Chat-V1-5 and InternVL2-1B are published whole; what is not encoder in them is a known language model and a projector.
INTERNVL_1_5 = 25_514_186_112
INTERNLM2_20B, NEW_ROWS, PROJECTOR_20B = 19_861_149_696, 2 * 9 * 6144, 2 * 12800 + (12800 * 6144 + 6144) + (6144**2 + 6144)
INTERNVL2_1B = 938_158_976
QWEN2_HALF_B = 494_032_768 + (2 * 151_655 - 151_936) * 896         # untied, and with other rows
PROJECTOR_1B = 2 * 4096 + (4096 * 896 + 896) + (896**2 + 896)
VISION = {
    "internvit_6b": INTERNVL_1_5 - INTERNLM2_20B - NEW_ROWS - PROJECTOR_20B,
    "internvit_300m": INTERNVL2_1B - QWEN2_HALF_B - PROJECTOR_1B,
    "clip_l_336": CLIP_VISION - CLIP_LAYER - CLIP_LAST_NORM,
    "siglip_so400m": SIGLIP_VISION - SIGLIP_HEAD,
}
LICENCES = {"qwen2_72b": "tongyi-qianwen", "qwen2_5_3b": "qwen-research", "qwen2_5_72b": "qwen", "llama3_8b": "llama3",
            "internvit_6b": "mit", "internvit_300m": "mit", "clip_l_336": "mit"}
TOKENS = {"internvit_6b": 256, "internvit_300m": 256, "clip_l_336": 144, "siglip_so400m": 81}      # of a tile


def run_with(*words: str) -> Run:
    return compose(["recipe=nvlm_d_2b", "stage=sft", *words])[0]


def entry(group: str, name: str) -> dict:
    return yaml.safe_load((recipes_dir() / group / f"{name}.yaml").read_text(encoding="utf-8"))


def test_every_entry_is_in_the_tables_of_this_file():
    assert NAMES == {"language": set(LANGUAGE) | (HOME_MADE - {"tiny_6b"}), "vision": set(VISION) | HOME_MADE}


@pytest.mark.parametrize(("name", "expected"), LANGUAGE.items(), ids=LANGUAGE)
def test_language_models_have_their_published_size(name, expected):
    assert parameters(run_with(f"language={name}").model).language == expected


@pytest.mark.parametrize(("name", "expected"), VISION.items(), ids=VISION)
def test_vision_encoders_have_their_published_size(name, expected):
    model = run_with(f"vision={name}").model
    assert parameters(model).vision == expected
    assert geometry_of(model).tokens == TOKENS[name]


@pytest.mark.parametrize(("group", "name"), [*(("language", name) for name in LANGUAGE), *(("vision", name) for name in VISION)])
def test_an_entry_says_all_there_is_to_say(group, name, monkeypatch):
    """Where it comes from, its licence, and the folder that import writes: the repository's name in small letters."""
    monkeypatch.setenv("NVLM_WEIGHTS", "/weights")
    model = run_with(f"{group}={name}").model
    settings = getattr(model, group)
    folder = f"/weights/{settings.source.split('/')[1].lower()}"
    assert settings.weights == folder
    assert settings.licence == LICENCES.get(name, "apache-2.0")
    if group == "language":
        assert model.tokenizer == f"{folder}/tokenizer.json"
        assert set(entry(group, name)) == {"model", "data"}
    written = set(entry(group, name)["model"][group])
    own = {"language": {"layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "rope_base", "norm_eps", "qkv_bias",
                        "tie_embeddings"},
           "vision": {"layers", "hidden", "heads", "ffn", "tile_size", "patch", "norm", "norm_eps", "qkv_bias", "qk_norm"}}[group]
    assert written >= own | {"family", "source", "licence", "weights"}, "an entry leaves no size to the defaults"


@pytest.mark.parametrize(("language", "vision"), [("qwen2_5_7b", "clip_l_336"), ("llama3_8b", "siglip_so400m"), ("tiny", "tiny")])
def test_an_entry_exchanges_everything_that_belongs_to_it(language, vision):
    """Whatever the recipe: sizes, weights, tokenizer, tag, template and the shuffle that its grid needs are the entry's alone."""
    fit = ["layout.tensor=1", "layout.pipeline=1", "layout.first_stage_layers=null", "data.max_tokens=512",
           "data.pack_tokens=8192", "model.cross_attention.every=4"]
    found = {}
    for recipe in ("nvlm_d_tiny", "nvlm_d_demo", "nvlm_d_2b", "nvlm_h_8b", "nvlm_d_34b", "nvlm_x_72b"):
        (run,) = compose([f"recipe={recipe}", "stage=sft", f"language={language}", f"vision={vision}", *fit])
        model = run.model
        found[recipe] = (model.language, model.vision, model.tokenizer, model.tags.global_name, model.connector.shuffle,
                         run.data.template)
    assert len(found) == 6 and len(set(found.values())) == 1


# config.json as published, where ours is not its mirror: CLIP's last layer and SigLIP's last six pixels are left out.
PUBLISHED_TOWERS = {
    "clip_l_336": {"model_type": "clip", "vision_config": {
        "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
        "patch_size": 14}},
    "siglip_so400m": {"model_type": "siglip", "vision_config": {
        "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27,
        "patch_size": 14}},
}
NOT_OF_SIZES = {"source": None, "licence": None, "weights": None}


@pytest.mark.parametrize("name", LANGUAGE)
def test_import_would_find_a_language_models_sizes(name):
    settings = replace(run_with(f"language={name}").model.language, **NOT_OF_SIZES)
    assert replace(read_language(write_language(settings)), **NOT_OF_SIZES) == settings


@pytest.mark.parametrize("name", VISION)
def test_import_would_find_an_encoders_sizes(name):
    settings = replace(run_with(f"vision={name}").model.vision, **NOT_OF_SIZES)
    config = PUBLISHED_TOWERS.get(name) or write_vision(settings)
    assert replace(read_vision(config), **NOT_OF_SIZES) == settings


def test_entries_say_only_what_belongs_to_them():
    """A language model has no word on the encoder and the other way round, and every key is a setting."""
    allowed = {"language": r"model\.(language\.\w+|tokenizer|tags\.global_name)|data\.template",
               "vision": r"model\.(vision\.\w+|connector\.shuffle)"}
    checked = 0
    for group, names in NAMES.items():
        for name in names:
            for key in leaves(entry(group, name)):
                assert re.fullmatch(allowed[group], key), f"{group}/{name}: {key}"
                assert kind_at(Run, tuple(key.split("."))) is not None, f"{group}/{name}: {key}"
                checked += 1
    assert checked > 300


def leaves(tree: dict, prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_templates_named_by_settings_are_those_there_are():
    assert CHOICES["data.template"] == tuple(TEMPLATES)
