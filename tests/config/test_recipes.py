"""Every recipe composes, resolves to its golden file, and says what the paper says."""

import json
import os
from pathlib import Path

import pytest
import yaml

from nvlm_train.config.compose import compose, recipe_names, recipes_dir, to_json
from nvlm_train.config.layers import cross_layers
from nvlm_train.config.schema import Run
from nvlm_train.config.typed import kind_at

GOLDEN = Path(__file__).parent.parent / "golden" / "configs"
SIZES = ("tiny", "demo", "2b", "34b", "72b")
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


TABLES_10_AND_11 = {
    # setting: D, X, H; each in pretraining and in finetuning
    "train.steps": ((20_000, 40_000), (20_000, 20_000), (20_000, 40_000)),
    "train.global_batch": ((2048, 128), (2048, 256), (2048, 256)),
    "train.lr": ((1e-4, 2e-6), (1e-4, 1e-5), (1e-4, 1e-5)),
    "train.min_lr": ((2.5e-5, 2.5e-7), (1e-5, 1e-7), (1e-5, 1e-7)),
    "train.warmup_steps": ((500, 1000), (1000, 500), (1000, 1000)),
    "train.schedule": (("cosine", "cosine"),) * 3,
    "train.beta1": ((0.9, 0.9),) * 3,
    "train.beta2": ((0.95, 0.98), (0.95, 0.98), (0.98, 0.98)),
    "train.weight_decay": ((0.1, 0.1), (0.05, 0.05), (0.05, 0.05)),
    "train.clip_grad": ((10, 10), (1, 1), (1, 1)),
    "train.trainable": ((["connector"], ["connector", "language"]),
                        *((["connector", "cross_attention"], ["connector", "language"]),) * 2),
    "data.max_tokens": ((512, 3200), (512, 1024), (512, 1280)),
    "data.max_tiles": ((1, 6), (1, 6), (6, 6)),
    "data.thumbnail": ((True, True),) * 3,
    "data.format": (("pretrain", "chat"),) * 3,
    "layout.tensor": ((8, 8),) * 3,
    "layout.pipeline": ((1, 4), (1, 1), (1, 1)),
    "model.connector.layers": ((2, 2), (1, 1), (2, 2)),
    "model.tags.kind": (("none", "1d"), ("none", "1d"), ("1d", "1d")),
}
X_34B = {"train.global_batch": (2048, 512), "train.min_lr": (1e-5, 1e-6)}       # the one column in which the sizes differ


@pytest.mark.parametrize("size", ["34b", "72b"])
@pytest.mark.parametrize(("column", "model"), [(0, "d"), (1, "x"), (2, "h")])
def test_paper_recipes_say_what_tables_10_and_11_say(column, model, size):
    expected = {key: values[column] for key, values in TABLES_10_AND_11.items()}
    expected |= X_34B if (model, size) == ("x", "34b") else {}
    stages = json.loads(golden_text(f"nvlm_{model}_{size}")).values()
    found = {key: tuple(value_at(stage, key) for stage in stages) for key in expected}
    assert found == expected
    assert {stage["model"]["architecture"] for stage in stages} == {f"nvlm_{model}"}


def value_at(tree: dict, key: str):
    for part in key.split("."):
        tree = tree[part]
    return tree


@pytest.mark.parametrize(("recipe", "layers"), [
    ("nvlm_d_72b", 0), ("nvlm_x_72b", 10), ("nvlm_h_72b", 10), ("nvlm_x_34b", 10), ("nvlm_h_34b", 10), ("nvlm_x_2b", 7),
    ("nvlm_x_demo", 2), ("nvlm_h_tiny", 2), ("flamingo_tiny", 2), ("llama3v_tiny", 2),
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


@pytest.mark.parametrize("model", "dxh")
@pytest.mark.parametrize(("size", "vision", "language"), [
    ("72b", (45, 3200, 25, 12800, 448, 14), (80, 8192, 64, 8, 29568, 152064, 1e6, 1e-6, True)),
    ("34b", (45, 3200, 25, 12800, 448, 14), (60, 7168, 56, 8, 20480, 64000, 5e6, 1e-5, False)),
    ("2b", (24, 1024, 16, 4096, 448, 14), (28, 1536, 12, 2, 8960, 151936, 1e6, 1e-6, True)),
])
def test_backbones_have_their_published_shapes(model, size, vision, language):
    for run in compose([f"recipe=nvlm_{model}_{size}"]):
        v, l = run.model.vision, run.model.language
        assert (v.layers, v.hidden, v.heads, v.ffn, v.tile_size, v.patch) == vision
        assert (l.layers, l.hidden, l.heads, l.kv_heads, l.ffn, l.vocab, l.rope_base, l.norm_eps, l.qkv_bias) == language
        assert l.head_dim == 128


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


def test_recipe_files_say_each_value_once():
    """A file of the vision and language groups only names settings that exist, at the place its header says."""
    checked = 0
    for group in ("vision", "language"):
        for path in sorted((recipes_dir() / group).glob("*.yaml")):
            text = path.read_text(encoding="utf-8")
            assert text.startswith(f"# @package model.{group}\n"), path.name
            for key in yaml.safe_load(text):
                assert kind_at(Run, ("model", group, key)) is not None, f"{path.name}: {key}"
                checked += 1
    assert checked >= 60
