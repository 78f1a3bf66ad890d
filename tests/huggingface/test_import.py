"""`nvlm import`: what is in a published folder arrives to the bit, and what is known of it is written down."""

import json
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hf_folders import (
    CLIP,
    LLAMA,
    MODELS,
    QWEN2,
    README,
    SIGLIP,
    TOKENIZER,
    VISION,
    language_folder,
    random_ours,
    theirs_of,
    vision_folder,
    whole_folder,
    write_folder,
)
from safetensors import safe_open
from safetensors.torch import load_file

from nvlm_train.cli import main
from nvlm_train.config.compose import compose
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.engine.manifest import record_file
from nvlm_train.engine.weights_folder import WeightsFolder, differences
from nvlm_train.huggingface import importing
from nvlm_train.huggingface.configs import write_config
from nvlm_train.huggingface.import_plan import plan_import
from nvlm_train.huggingface.import_source import open_source
from nvlm_train.huggingface.importing import remarks, write_import
from nvlm_train.huggingface.names import nvlm_entries, vision_entries
from nvlm_train.model.accounting import parameters


def imported(source, target, layers=None):
    return write_import(plan_import(open_source(str(source)), layers), target)


def held(weights):
    """Every tensor of a folder of weights, where weights.json says that it is."""
    found = {}
    for name, record in weights.tensors.items():
        with safe_open(weights.path / record.file, "pt") as file:
            found[name] = file.get_tensor(name)
            assert tuple(found[name].shape) == record.shape
    return found


def assert_same(weights, ours):
    found = held(weights)
    assert found.keys() == ours.keys() and len(found) > 10
    for name, tensor in ours.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("language", [QWEN2, LLAMA], ids=["qwen2, three shards", "llama, tied"])
def test_a_language_model_arrives_to_the_bit(language, tmp_path):
    source, ours = language_folder(tmp_path / "hf", language, shards=3 if language is QWEN2 else 1)
    weights = imported(source, tmp_path / "ours")
    assert_same(weights, ours)
    assert weights.sizes.language == language and weights.sizes.components == ("language",)
    assert {record.dtype for record in weights.tensors.values()} == {"BF16"}


@pytest.mark.parametrize("vision, prefix", [(VISION, ""), (CLIP, "vision_model."), (SIGLIP, "")],
                         ids=["internvit", "clip", "siglip"])
def test_an_encoder_arrives_to_the_bit(vision, prefix, tmp_path):
    source, ours = vision_folder(tmp_path / "hf", vision, prefix=prefix)
    weights = imported(source, tmp_path / "ours", vision.layers)
    assert_same(weights, ours)
    assert weights.sizes.vision == vision


@pytest.mark.parametrize("architecture", MODELS)
def test_a_whole_model_arrives_without_its_dummy_heads(architecture, tmp_path, capsys):
    model = MODELS[architecture]
    source, ours = whole_folder(tmp_path / "hf", model, README_md=README.format("cc-by-nc-4.0"))
    assert main(["import", f"from={source}", f"to={tmp_path / 'ours'}"]) == 0
    weights = WeightsFolder.read(tmp_path / "ours")
    assert_same(weights, ours)
    assert weights.sizes.architecture == architecture and weights.sizes.vision.hidden == 24
    assert weights.source["dummy_heads"] == 7 and weights.source["licence"] == "cc-by-nc-4.0"
    assert weights.sizes.language.licence == weights.sizes.vision.licence == "cc-by-nc-4.0"
    told = capsys.readouterr().err
    assert "licence: cc-by-nc-4.0. It does not allow commercial use" in told and "7 dummy heads" in told


def test_the_released_nvlm_d_is_recognised_by_its_shapes():
    """Of the size that is listed for it, 79.38 B with seven dummy heads; 0.52 B of that are theirs."""
    model = compose(["recipe=nvlm_d_72b", "stage=sft"])[0].model
    shapes = {name: shape for entry in nvlm_entries(model, 7) for name, shape in zip(entry.theirs, entry.their_shapes, strict=True)}
    source = SimpleNamespace(name="NVLM-D-72B", config=write_config(model), preprocessor=None, shapes=shapes, tokenizer=None,
                             dtypes=dict.fromkeys(shapes, torch.bfloat16), repository=None, licence=None)
    plan = plan_import(source)
    assert round(sum(map(math.prod, shapes.values())) / 1e9, 2) == 79.38
    assert plan.dummy_heads == 7 and plan.parameters == parameters(model).total
    assert differences(plan.sizes, model, ["vision", "connector", "language"]) == []
    assert any("CC-BY-NC-4.0" in remark for remark in remarks(plan))


def test_files_are_small_complete_and_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "LIMIT", 40_000)
    source, ours = language_folder(tmp_path / "hf", tokenizer_json=TOKENIZER)
    weights = imported(source, tmp_path / "ours")
    assert_same(weights, ours)
    tensor_files = Counter(record.file for record in weights.tensors.values())
    assert len(tensor_files) > 2
    # 40,000 bytes of tensors and a header, or one tensor that is larger: the embedding and the output layer.
    assert all(weights.files[name].size < 44_000 or count == 1 for name, count in tensor_files.items())
    present = {path.name for path in weights.path.iterdir()}
    assert present == {*weights.files, "weights.json"} and weights.problem_with_files() is None
    assert all(record_file(weights.path / name) == record for name, record in weights.files.items())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_only_needed_layers_and_towers_of_clip_are_taken(tmp_path):
    """Both towers in one file, three encoder layers: two are taken unless all are asked for; the rest is named."""
    vision = replace(CLIP, layers=3)
    entries = list(vision_entries(vision, "vision_model."))
    ours = random_ours(entries, torch.float16)
    spare = ["text_model.encoder.layers.0.mlp.fc1.weight", "logit_scale", "visual_projection.weight", "text_projection.weight",
             "vision_model.post_layernorm.weight", "vision_model.post_layernorm.bias", "vision_model.embeddings.position_ids"]
    inside = {"image_size": 16, "patch_size": 4, "num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 3,
              "intermediate_size": 40}
    source = write_folder(tmp_path / "hf", {"model_type": "clip", "vision_config": inside, "text_config": {}},
                          theirs_of(entries, ours) | {name: torch.zeros(2) for name in spare})
    weights = imported(source, tmp_path / "two")
    assert weights.sizes.vision == replace(vision, layers=2)
    assert_same(weights, {name: tensor for name, tensor in ours.items() if "layers.2." not in name})
    left = [name for names in weights.source["left_out"].values() for name in names]
    assert sorted(left) == sorted([*spare, *(name for name in theirs_of(entries, ours) if "layers.2." in name)])
    assert_same(imported(source, tmp_path / "three", 3), ours)


def test_an_output_layer_that_is_the_embedding_is_left_out(tmp_path):
    source, ours = language_folder(tmp_path / "a", LLAMA)
    both = {**load_file(source / "model.safetensors"), "lm_head.weight": ours["language.embedding.weight"].clone()}
    again = write_folder(tmp_path / "b", json.loads((source / "config.json").read_text()), both)
    weights = imported(again, tmp_path / "ours")
    assert_same(weights, ours)
    assert list(weights.source["left_out"].values()) == [["lm_head.weight"]]


def test_the_tokenizer_comes_along_and_is_remembered(tmp_path):
    source, _ = language_folder(tmp_path / "hf", tokenizer_json=TOKENIZER)
    weights = imported(source, tmp_path / "ours")
    assert (weights.path / "tokenizer.json").read_bytes() == TOKENIZER
    assert load_tokenizer(str(weights.path)).fingerprint == weights.tokenizer


def test_without_a_tokenizer_it_says_how_to_make_one(tmp_path, capsys):
    source, _ = language_folder(tmp_path / "hf")
    assert main(["import", f"from={source}", f"to={tmp_path / 'ours'}"]) == 0
    told = capsys.readouterr()
    assert "AutoTokenizer" in told.err and "names no licence" in told.err
    assert "written to" in told.out and WeightsFolder.read(tmp_path / "ours").tokenizer is None


def test_a_dry_run_writes_nothing_and_tells_in_json(tmp_path, capsys):
    source, ours = language_folder(tmp_path / "hf", README_md=README.format("other\nlicense_name: tongyi-qianwen"))
    assert main(["import", f"from={source}", f"to={tmp_path / 'ours'}", "repository=Qwen/Qwen2", "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == sum(tensor.numel() for tensor in ours.values()) and facts["tensors"] == len(ours)
    assert facts["bytes"] == 2 * facts["parameters"] and facts["to"] is None
    assert (facts["repository"], facts["licence"]) == ("Qwen/Qwen2", "tongyi-qianwen")
    assert facts["components"]["language"]["source"] == "Qwen/Qwen2"
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
