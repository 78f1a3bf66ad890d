"""Strict reading: unknown keys name the nearest known one, wrong types name field, value and what was expected."""

import pytest

from nvlm_train.config.compose import compose
from nvlm_train.config.schema import Run, Train
from nvlm_train.config.typed import build, key_paths, kind_at, suggestion
from nvlm_train.errors import ConfigError

TINY = "recipe=nvlm_d_tiny"


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose([TINY, *overrides])
    return caught.value.problems


@pytest.mark.parametrize(("given", "meant"), [
    ("layuot.tensor", "layout.tensor"),
    ("layout.tesnor", "layout.tensor"),
    ("lr", "train.lr"),
    ("model.vision.head", "model.vision.heads"),
    ("model.languge.layers", "model.language.layers"),
    ("data.blend.mine.wieght", "data.blend.<name>.weight"),
    ("stages.sft.trian.steps", "stages.sft.train.steps"),
    ("stages.sft.train.step", "stages.sft.train.steps"),
    ("run.wandbb", "run.wandb"),
    ("enginee", "engine"),
])
def test_typos_name_the_nearest_key(given, meant):
    assert problems(f"{given}=1") == [f"{given}: unknown key; did you mean {meant}?"]


def test_unknown_stage_and_settings_that_no_stage_may_change():
    assert problems("stages.stf.train.steps=1") == ["stages.stf: unknown stage; did you mean sft?"]
    assert problems("stages.sft.run.dir=x") == ["stages.sft.run: is the same for every stage; set run itself"]


def test_nothing_near_makes_no_suggestion():
    assert problems("zzzzqq=1") == ["zzzzqq: unknown key"]


def test_all_problems_are_told_together():
    assert len(problems("layuot.tensor=2", "train.lrr=1", "zzzzqq=1")) == 3


@pytest.mark.parametrize(("override", "sentence"), [
    ("train.steps=ten", "train.steps: expected a whole number, got 'ten' (text)"),
    ("train.steps=1e3", "train.steps: expected a whole number, got 1000.0 (a number); write 1000"),
    ("train.steps=true", "train.steps: expected a whole number, got True (true or false)"),
    ("train.steps=null", "train.steps: expected a whole number, got None (empty)"),
    ("train.lr=fast", "train.lr: expected a number, got 'fast' (text)"),
    ("data.packing=1", "data.packing: expected true or false, got 1 (a whole number)"),
    ("train.trainable=connector", "train.trainable: expected a list, such as [connector], got 'connector' (text)"),
    ("train.trainable=[1]", "train.trainable[0]: expected text, got 1 (a whole number); quote it: \"1\""),
    ("layout.first_stage_layers=x", "layout.first_stage_layers: expected a whole number or null, got 'x' (text)"),
    ("data.blend.images.weight=heavy", "data.blend.images.weight: expected a number, got 'heavy' (text)"),
    ("train.lr_multipliers={connector:fast}", "train.lr_multipliers.connector: expected a number, got 'fast' (text)"),
])
def test_wrong_types(override, sentence):
    assert problems(override) == [sentence]


def test_a_value_in_place_of_a_group():
    (problem,) = problems("train=5")
    assert problem.startswith("train: expected a group of settings (steps, global_batch, lr") and problem.endswith(
        "got 5 (a whole number)")


def test_problem_of_one_stage_names_it():
    assert problems("stages.sft.train.steps=ten") == ["train.steps: expected a whole number, got 'ten' (text) (stage sft)"]


def test_build_keeps_defaults_and_types():
    train = build(Train, {"lr": 1, "trainable": ["vision"]})
    assert train == Train(lr=1.0, trainable=("vision",)) and type(train.lr) is float
    with pytest.raises(ConfigError, match="recipe: must be given\nstage: must be given"):
        build(Run, {})


def test_key_paths_cover_every_leaf():
    paths = set(key_paths(Run))
    assert {"train", "train.lr", "model.vision.heads", "data.blend.<name>.epochs", "train.lr_multipliers.<name>"} <= paths
    assert all(kind_at(Run, tuple(path.split("."))) is not None for path in paths)
    assert kind_at(Run, ("train", "lr", "deeper")) is None


def test_suggestion_prefers_the_whole_key():
    assert suggestion("vision.layers", ["language.layers", "vision.layers_"]) == "; did you mean vision.layers_?"
    assert suggestion("x", []) == ""
