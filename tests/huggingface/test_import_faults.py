"""Sources that cannot be imported: each is refused before anything is written, with what is wrong and what to do."""

import json
import pickle
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from hf_folders import LLAMA, MODELS, QWEN2, TOKENIZER, VISION, language_folder, vision_folder, whole_folder, write_folder
from safetensors.torch import load_file, save_file

from nvlm_train.cli import main
from nvlm_train.huggingface import importing, new_folder


@pytest.fixture
def refused(tmp_path, capsys):
    """What `nvlm import` says to a folder that it refuses; nothing may be left behind, and no traceback shown."""
    def run(source, *words):
        before = sorted(tmp_path.iterdir())
        code = main(["import", f"from={source}", f"to={tmp_path / 'ours'}", *words])
        told = capsys.readouterr()
        assert code in (1, 2) and "Traceback" not in told.err
        assert sorted(tmp_path.iterdir()) == before, "something was left behind"
        return " ".join(told.err.split())
    return run


def changed(folder, change):
    """The folder's tensors (a single file) with a change."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def configured(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def test_a_family_that_is_not_implemented(tmp_path, refused):
    source, _ = language_folder(tmp_path / "hf")
    told = refused(configured(source, model_type="qwen3"))
    assert "model_type 'qwen3' is of no family that is implemented; did you mean qwen2?" in told
    assert "rope_scaling of type 'yarn'" in refused(configured(source, model_type="qwen2", rope_scaling={"rope_type": "yarn"}))


def test_a_config_of_another_family_than_the_tensors(tmp_path, refused):
    """Qwen2's biases are strange to a Llama; a Llama lacks what a Qwen2 has."""
    source, _ = language_folder(tmp_path / "hf")
    told = refused(configured(source, model_type="llama"))
    assert "the llama that its config.json describes" in told
    assert "not part of this model: model.layers.0.self_attn.k_proj.bias" in told
    source, _ = language_folder(tmp_path / "llama", LLAMA)
    assert "missing: model.layers.0.self_attn.q_proj.bias" in refused(configured(source, model_type="qwen2"))


def test_missing_and_strange_tensors_come_with_the_nearest_name(tmp_path, refused):
    source, _ = language_folder(tmp_path / "hf")

    def rename(tensors):
        tensors["model.layers.1.mlp.downproj.weight"] = tensors.pop("model.layers.1.mlp.down_proj.weight")
        del tensors["model.norm.weight"]

    told = refused(changed(source, rename))
    assert "missing: model.layers.1.mlp.down_proj.weight (nearest: model.layers.1.mlp.downproj.weight)" in told
    assert "not part of this model: model.layers.1.mlp.downproj.weight (nearest: model.layers.1.mlp.down_proj.weight)" in told
    assert "missing: model.norm.weight" in told


def test_many_missing_tensors_are_counted(tmp_path, refused):
    source, _ = language_folder(tmp_path / "hf")
    assert "missing: 18 more" in refused(configured(source, num_hidden_layers=4))      # 6 are named; a layer has 12


def test_wrong_shapes_are_shown_both(tmp_path, refused):
    source, _ = language_folder(tmp_path / "hf")
    told = refused(configured(source, intermediate_size=64))
    assert "model.layers.0.mlp.gate_proj.weight has shape (48, 32), and by config.json (64, 32)" in told
    assert "model.layers.0.mlp.down_proj.weight has shape (32, 48), and by config.json (32, 64)" in told


def test_parts_of_one_tensor_in_two_kinds_of_numbers(tmp_path, refused):
    source, _ = language_folder(tmp_path / "hf")
    name = "model.layers.0.self_attn.k_proj.weight"
    told = refused(changed(source, lambda tensors: tensors.update({name: tensors[name].float()})))
    assert name in told and "torch.bfloat16 and torch.float32" in told


def test_quantised_numbers(tmp_path, refused):
    source, _ = language_folder(tmp_path / "hf")
    name = "model.layers.0.mlp.up_proj.weight"
    told = refused(changed(source, lambda tensors: tensors.update({name: torch.zeros(48, 32, dtype=torch.int8)})))
    assert f"{name} is stored as I8" in told and "quantised" in told


@pytest.mark.parametrize("kept, reason", [(-100, "should have"), (40, "header should be"), (4, "is no whole safetensors file")])
def test_a_truncated_shard(kept, reason, tmp_path, refused):
    source, _ = language_folder(tmp_path / "hf", shards=2)
    shard = source / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:kept])
    told = refused(source)
    assert shard.name in told and reason in told and "ownload it again" in told


def test_a_header_that_is_nonsense(tmp_path, refused):
    source, _ = language_folder(tmp_path / "hf")
    file = source / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[8:40] = b"\xff" * 32
    file.write_bytes(whole)
    assert "is no safetensors file" in refused(source)


def test_an_index_that_names_absent_files(tmp_path, refused):
    source, _ = language_folder(tmp_path / "hf", shards=3)
    (source / "model-00002-of-00003.safetensors").unlink()
    assert "names 3 files, and 1 of them are not there: model-00002-of-00003.safetensors" in refused(source)


def test_an_index_of_another_download(tmp_path, refused):
    source, _ = language_folder(tmp_path / "hf", shards=2)
    index = source / "model.safetensors.index.json"
    swapped = index.read_text().replace("00001-of", "x").replace("00002-of", "00001-of").replace("-x", "-00002-of")
    index.write_text(swapped)
    assert "the files are not of one download" in refused(source)
    index.write_text(json.dumps({"weight_map": {"a": "../../other.safetensors"}}))
    assert "which is not a file of this folder" in refused(source)
    index.write_text("[]")
    assert "holds no table of settings" in refused(source)


def test_a_tensor_in_two_files(tmp_path, refused):
    source, _ = language_folder(tmp_path / "hf")
    (source / "a.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    (source / "model.safetensors").rename(source / "b.safetensors")
    assert "is both in" in refused(source)


def test_tied_and_untied_embeddings(tmp_path, refused):
    source, _ = language_folder(tmp_path / "untied")
    told = refused(configured(source, tie_word_embeddings=True))
    assert "tie_word_embeddings=true, so that lm_head.weight would be model.embed_tokens.weight, but the two differ" in told
    source, _ = language_folder(tmp_path / "tied", LLAMA)
    told = refused(configured(source, tie_word_embeddings=False))
    assert "missing: lm_head.weight" in told and "config.json has to say tie_word_embeddings=true" in told


def test_a_tokenizer_of_more_ids_than_rows(tmp_path, refused):
    source, _ = language_folder(tmp_path / "hf", replace(QWEN2, vocab=1000), tokenizer_json=TOKENIZER)
    assert "ids up to 1,023, and the embedding 1,000 rows" in refused(source)
    (source / "tokenizer.json").write_text("not json")
    assert "tokenizer.json cannot be read" in refused(source)


def test_pickles_are_not_opened(tmp_path, refused):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    source = write_folder(tmp_path / "hf", {"model_type": "llama"}, {})
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    told = refused(source)
    assert "pickles only (pytorch_model.bin)" in told and "save_pretrained" in told
    assert not (tmp_path / "sprung").exists()


def test_dummy_heads_that_hold_something(tmp_path, refused):
    """Found while writing: what was written is removed again."""
    source, _ = vision_folder(tmp_path / "hf", VISION, dummy_heads=5)
    name = "encoder.layers.1.attn.qkv.weight"

    def fill(tensors):
        tensors[name][-1, 3] = 0.5

    told = refused(changed(source, fill))
    assert name in told and "dummy heads and so all 0, but holds values up to 0.5" in told


def test_an_existing_target(tmp_path, capsys):
    source, _ = language_folder(tmp_path / "hf")
    (tmp_path / "ours").mkdir()
    assert main(["import", f"from={source}", f"to={tmp_path / 'ours'}"]) == 2
    assert "exists already" in capsys.readouterr().err and list((tmp_path / "ours").iterdir()) == []


def test_a_disk_that_is_too_small(tmp_path, refused, monkeypatch):
    source, _ = language_folder(tmp_path / "hf")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(new_folder.shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 1000, 1000))
    told = refused(source)
    assert "1000 B free" in told and "make room, or name a folder on another disk" in told


def test_a_disk_that_fills_up(tmp_path, refused, monkeypatch):
    source, _ = whole_folder(tmp_path / "hf", MODELS["nvlm_d"])

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importing, "record_file", full)
    assert "cannot be written: No space left on device" in refused(source)


def test_what_is_no_hugging_face_folder(tmp_path, refused):
    assert "there is no such folder" in refused(tmp_path / "nowhere")
    assert "hf download Qwen/Qwen2-7B --local-dir Qwen2-7B" in refused("Qwen/Qwen2-7B")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(tmp_path / "empty")
    (tmp_path / "file.safetensors").write_bytes(b"")
    assert "is a file; give the folder that holds it" in refused(tmp_path / "file.safetensors")


def test_what_was_imported_already(tmp_path, capsys):
    source, _ = language_folder(tmp_path / "hf")
    assert main(["import", f"from={source}", f"to={tmp_path / 'ours'}"]) == 0
    capsys.readouterr()
    (tmp_path / "ours" / "config.json").write_text("{}")
    assert main(["import", f"from={tmp_path / 'ours'}", f"to={tmp_path / 'again'}"]) == 1
    assert "was imported already" in capsys.readouterr().err


@pytest.mark.parametrize("words, reason", [
    (["to=x"], "from= is needed"), (["from=x"], "to= is needed"), (["from=x", "to=y", "layer=3"], "did you mean layers?"),
    (["from=x", "to=y", "layers=0"], "layers=0: expected a whole number"),
    (["from=x", "to=y", "--fast"], "import has no such flag")])
def test_words_that_cannot_be_understood(words, reason, capsys):
    assert main(["import", *words]) == 2
    assert reason in capsys.readouterr().err
