"""Every recipe composes, resolves to its golden file, and says what the paper says."""

import json
import os
from pathlib import Path

import pytest
import yaml

from nvlm_train.config.compose import compose, recipe_names, recipes_dir, to_json
from nvlm_train.config.schema import Run
from nvlm_train.config.typed import kind_at

GOLDEN = Path(__file__).parent.parent / "golden" / "configs"
SHIPPED = {"nvlm_d_tiny", "nvlm_d_tiny_6b", "nvlm_d_2b", "nvlm_d_34b", "nvlm_d_72b"}


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


@pytest.mark.parametrize("recipe", ["nvlm_d_34b", "nvlm_d_72b"])
def test_paper_recipes_say_what_tables_10_and_11_say(recipe):
    pretrain, sft = json.loads(golden_text(recipe)).values()
    table = {
        "train.steps": (20_000, 40_000), "train.global_batch": (2048, 128), "train.lr": (1e-4, 2e-6),
        "train.min_lr": (2.5e-5, 2.5e-7), "train.warmup_steps": (500, 1000), "train.schedule": ("cosine", "cosine"),
        "train.beta1": (0.9, 0.9), "train.beta2": (0.95, 0.98), "train.weight_decay": (0.1, 0.1), "train.clip_grad": (10, 10),
        "data.max_tokens": (512, 3200), "data.max_tiles": (1, 6), "layout.tensor": (8, 8), "layout.pipeline": (1, 4),
        "train.trainable": (["connector"], ["connector", "language"]), "model.architecture": ("nvlm_d", "nvlm_d"),
        "model.tags.kind": ("none", "1d"), "data.format": ("pretrain", "chat"), "data.thumbnail": (True, True),
    }
    for stage, column in ((pretrain, 0), (sft, 1)):
        for key, values in table.items():
            group, _, name = key.rpartition(".")
            node = stage
            for part in group.split("."):
                node = node[part]
            assert node[name] == values[column], f"{stage['stage']}: {key}"


@pytest.mark.parametrize(("recipe", "vision", "language"), [
    ("nvlm_d_72b", (45, 3200, 25, 12800, 448, 14), (80, 8192, 64, 8, 29568, 152064, 1e6, 1e-6, True)),
    ("nvlm_d_34b", (45, 3200, 25, 12800, 448, 14), (60, 7168, 56, 8, 20480, 64000, 5e6, 1e-5, False)),
    ("nvlm_d_2b", (24, 1024, 16, 4096, 448, 14), (28, 1536, 12, 2, 8960, 151936, 1e6, 1e-6, True)),
])
def test_backbones_have_their_published_shapes(recipe, vision, language):
    for run in compose([f"recipe={recipe}"]):
        v, l = run.model.vision, run.model.language
        assert (v.layers, v.hidden, v.heads, v.ffn, v.tile_size, v.patch) == vision
        assert (l.layers, l.hidden, l.heads, l.kv_heads, l.ffn, l.vocab, l.rope_base, l.norm_eps, l.qkv_bias) == language
        assert l.head_dim == 128


@pytest.mark.parametrize("recipe", ["nvlm_d_tiny", "nvlm_d_tiny_6b"])
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
