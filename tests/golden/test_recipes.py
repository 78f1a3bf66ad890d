"""Every recipe composes and resolves to its golden file; the designs that are compared differ in the design alone."""

import os
from pathlib import Path

import pytest

from nvlm_train.config.compose import compose, recipe_names, recipes_dir, to_json
from nvlm_train.config.layers import cross_layers

GOLDEN = Path(__file__).parent / "configs"
SIZES = ("tiny", "demo", "smol", "2b", "8b", "34b", "72b")
DESIGNS = {"llava_tiny": "nvlm_d", "internvl2_tiny": "nvlm_d", "flamingo_tiny": "nvlm_x", "llama3v_tiny": "nvlm_x"}
SHIPPED = {f"nvlm_{model}_{size}" for model in "dxh" for size in SIZES} | {"nvlm_d_tiny_6b", *DESIGNS}


def golden_text(recipe: str) -> str:
    return to_json(compose([f"recipe={recipe}"])) + "\n"


def test_all_recipe_files_are_seen():
    files = {path.stem for path in (recipes_dir() / "recipe").iterdir() if path.suffix == ".yaml"}
    assert set(recipe_names()) == files
    assert SHIPPED <= files


def test_every_recipe_resolves_to_its_golden_file():
    """UPDATE_GOLDEN=1 writes the files anew; the diff then shows every run that a changed default touches."""
    names = recipe_names()
    if os.environ.get("UPDATE_GOLDEN"):
        for recipe in names:
            (GOLDEN / f"{recipe}.json").write_text(golden_text(recipe), encoding="utf-8")
    found = {path.stem: path.read_text(encoding="utf-8") for path in GOLDEN.glob("*.json")}
    assert set(found) == set(names), "a golden file for each recipe and no other; UPDATE_GOLDEN=1 writes them"
    different = [recipe for recipe in names if golden_text(recipe) != found[recipe]]
    assert not different, "resolved differently than tests/golden/configs says; UPDATE_GOLDEN=1 if that is meant"
    assert len(names) >= len(SHIPPED)


@pytest.mark.parametrize(("recipe", "layers"), [
    ("nvlm_d_72b", 0), ("nvlm_x_72b", 10), ("nvlm_h_72b", 10), ("nvlm_x_34b", 10), ("nvlm_h_34b", 10), ("nvlm_x_2b", 7),
    ("nvlm_h_8b", 7), ("nvlm_x_demo", 2), ("nvlm_x_smol", 10), ("nvlm_h_smol", 10), ("nvlm_h_tiny", 2), ("flamingo_tiny", 2),
    ("llama3v_tiny", 2),
])
def test_layers_with_cross_attention(recipe, layers):
    """Every 6 of 60 layers and every 8 of 80, section 4.3; small models have at least two."""
    assert [len(cross_layers(run.model)) for run in compose([f"recipe={recipe}"])] == [layers, layers]


@pytest.mark.parametrize("recipe", sorted(DESIGNS) + ["nvlm_x_tiny", "nvlm_h_tiny"])
def test_compared_designs_differ_from_nvlm_d_tiny_in_the_design_alone(recipe):
    """The same backbones, data, steps, batches and learning rates, so that a comparison compares designs."""
    for own, reference in zip(compose([f"recipe={recipe}"]), compose(["recipe=nvlm_d_tiny"]), strict=True):
        assert own.model.architecture == DESIGNS.get(recipe, recipe[:6])
        assert (own.model.vision, own.model.language) == (reference.model.vision, reference.model.language)
        for name in ("steps", "global_batch", "lr", "min_lr", "warmup_steps", "schedule", "seed"):
            assert getattr(own.train, name) == getattr(reference.train, name), name
        for name in ("blend", "validation", "format", "pack_tokens", "pack_tiles", "system_prompt"):
            assert getattr(own.data, name) == getattr(reference.data, name), name


def test_what_the_compared_designs_are():
    (_, llava), (_, internvl2), (_, flamingo), (_, llama3v) = (compose([f"recipe={name}_tiny"]) for name in (
        "llava", "internvl2", "flamingo", "llama3v"))
    assert {run.model.tags.kind for run in (llava, internvl2, flamingo, llama3v)} == {"none"}
    assert [run.data.max_tiles for run in (llava, internvl2, flamingo, llama3v)] == [1, 6, 1, 6]
    assert [run.train.trainable for run in (llava, internvl2, flamingo, llama3v)] == [
        ("connector", "language"), ("vision", "connector", "language"), ("connector", "cross_attention"),
        ("vision", "connector", "cross_attention")]
    assert [run.model.connector.resampler_tokens for run in (llava, internvl2, flamingo, llama3v)] == [0, 0, 4, 0]
    assert [run.model.cross_attention.ffn for run in (flamingo, llama3v)] == [384, 384], "the language model's"
    assert not flamingo.model.cross_attention.tag_mask and not llama3v.model.cross_attention.tag_mask


@pytest.mark.parametrize("recipe", ["nvlm_d_tiny", "nvlm_d_tiny_6b", "nvlm_x_tiny", "nvlm_h_tiny", *sorted(DESIGNS)])
def test_tiny_recipes_need_nothing_but_the_package(recipe):
    for run in compose([f"recipe={recipe}"]):
        sources = [*run.data.blend.values(), *run.data.validation.values()]
        assert sources and all(source.path.startswith("builtin:tiny/") for source in sources)
        assert run.model.tokenizer == "tiny" and run.model.vision.weights is None and run.model.language.weights is None


def test_the_6b_style_tiny_encoder_keeps_what_makes_it_hard():
    vision = compose(["recipe=nvlm_d_tiny_6b"])[0].model.vision
    assert (vision.norm, vision.qk_norm, vision.qkv_bias, vision.layer_scale) == ("rms", True, False, True)
    assert vision.heads == 5 and vision.hidden % vision.heads == 0
