"""What is written: readable back to equal runs, without secrets, and without a way to run code."""

import json

import pytest
import yaml

from nvlm_train.config.compose import compose, from_file, recipe_names, runs_from_file, to_json, to_yaml
from nvlm_train.config.dump import REDACTED, is_secret, redact
from nvlm_train.errors import ConfigError

TINY = "recipe=nvlm_d_tiny"


def test_json_is_one_object_for_one_stage_and_two_for_all():
    assert json.loads(to_json(compose([TINY, "stage=sft"])))["stage"] == "sft"
    both = json.loads(to_json(compose([TINY])))
    assert list(both) == ["pretrain", "sft"]
    assert [both[stage]["train"]["steps"] for stage in both] == [30, 40]


@pytest.mark.slow
def test_yaml_round_trip_of_every_recipe(tmp_path):
    names = recipe_names()
    for name in names:
        runs = compose([f"recipe={name}"])
        path = tmp_path / f"{name}.yaml"
        path.write_text(to_yaml(runs), encoding="utf-8")
        assert runs_from_file(path) == runs
        assert from_file(path) == runs[-1]
        assert [from_file(path, run.stage) for run in runs] == runs
        path.write_text(to_yaml(runs[0]), encoding="utf-8")
        assert from_file(path) == runs[0]
    assert len(names) >= 5


def test_a_configuration_from_when_the_engine_was_a_word(tmp_path):
    runs = compose(["recipe=nvlm_d_tiny"])
    tree = yaml.safe_load(to_yaml(runs))
    for stage in tree.values():
        stage["engine"] = "megatron"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert runs_from_file(tmp_path / "config.yaml") == runs


@pytest.mark.parametrize(("text", "sentence"), [
    ("a: [1", "not a resolved configuration"),
    ("", "holds no settings"),
    ("- 1", "holds no settings"),
    ("!!python/object/apply:os.system ['true']", "not a resolved configuration"),
    ("recipe: x\nstage: sft\ntrian: {}", "did you mean train?"),
    ("recipe: x\nstage: sft\ntrain: {lr: fast}", "train.lr: expected a number"),
    ("model: text", "expected a group of settings"),
])
def test_files_that_are_no_configuration(tmp_path, text, sentence):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=sentence.replace("?", r"\?")) as caught:
        from_file(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_missing_stage(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        from_file(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text(to_yaml(compose([TINY, "stage=sft"])), encoding="utf-8")
    with pytest.raises(ConfigError, match="holds sft, not pretrain"):
        from_file(tmp_path / "config.yaml", "pretrain")


@pytest.mark.parametrize("name", ["token", "hub_token", "HF_TOKEN", "api_key", "apikey", "WANDB_API_KEY", "password", "passwd",
                                  "my-secret", "AWS_SECRET_ACCESS_KEY", "credentials"])
def test_secret_names(name):
    assert is_secret(name)
    assert redact({"a": [{name: "hunter2"}]}) == {"a": [{name: REDACTED}]}


@pytest.mark.parametrize("name", ["max_tokens", "tokenizer", "pack_tokens", "tokens_per_s", "keep_last", "monkey", "compass"])
def test_ordinary_names(name):
    assert not is_secret(name)
    assert redact({name: 5}) == {name: 5}


def test_no_dump_shows_a_secret():
    runs = compose([TINY, "data.blend.mine.path=https://me:hunter2@host/shards", "train.lr_multipliers.connector.api_key=0.25"])
    for text in (to_yaml(runs), to_json(runs), to_yaml(runs[0])):
        assert "hunter2" not in text and "0.25" not in text
        assert f"https://{REDACTED}@host/shards" in text
    assert yaml.safe_load(to_yaml(runs))["sft"]["data"]["max_tokens"] == 256
