"""Imported weights in a model: what was imported is what the engine holds, and what does not fit is refused."""

import json
import logging
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hf_folders import QWEN2, TOKENIZER, language_folder, vision_folder, whole_folder
from PIL import Image
from safetensors.torch import load_file

from nvlm_train.cli import main
from nvlm_train.config.compose import compose
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.engine.weights_folder import WeightsFolder
from nvlm_train.errors import CheckpointError
from nvlm_train.huggingface.import_plan import plan_import
from nvlm_train.huggingface.import_source import open_source
from nvlm_train.huggingface.importing import write_import
from nvlm_train.model.weights import component_tensors
from nvlm_train.parallel import groups
from nvlm_train.training.backbones import load_backbones_of, load_start
from nvlm_train.training.stages import build_engine, train_all
from nvlm_train.training.start import start_of
from tests.engine.launching import launch

TINY = ("stage=sft", "run.device=cpu", "train.global_batch=4", "train.steps=1", "train.warmup_steps=0", "run.eval_batches=1",
        "run.examples=0")


@pytest.fixture(scope="module", autouse=True)
def job():
    """The first engine joins a job of one process; leave it when done."""
    yield
    groups.stop()


@pytest.fixture(autouse=True)
def layout():
    """A command leaves its engine to the end of its process: give its groups up, for the next test's."""
    yield
    groups.clear()


def the_run(recipe, *words):
    [run] = compose([f"recipe={recipe}", *TINY, *words])
    return run


def imported(source, target):
    return write_import(plan_import(open_source(str(source))), target)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(an NVLM-H of the tiny recipe's sizes, imported; its tensors)"""
    where = tmp_path_factory.mktemp("h")
    source, ours = whole_folder(where / "hf", the_run("nvlm_h_tiny").model, dtype=torch.float32, tokenizer_json=TOKENIZER)
    return imported(source, where / "ours"), ours


def held(engine):
    return {name: tensor for component in ("vision", "connector", "language")
            for name, tensor in component_tensors(engine.stages(), component).items()}


def loaded(run, load=load_backbones_of):
    """What an engine of a run holds after its backbones were loaded."""
    with closing(build_engine(run)) as engine:
        load(run, engine, load_tokenizer(run.model.tokenizer))
        return held(engine)


def from_init(run, engine, tokenizer):
    load_start(run, start_of(run, None), engine, tokenizer)


def parts_from(path, *parts):
    return [f"model.{part}.weights={path}" for part in parts]


def test_every_component_arrives_cross_attention_too(whole):
    weights, ours = whole
    found = loaded(the_run("nvlm_h_tiny", *parts_from(weights.path, "vision", "connector", "language")))
    assert found.keys() == ours.keys() and all(torch.equal(found[name], ours[name]) for name in ours)
    assert any(name.endswith("cross_attention.gate") for name in ours)


def test_only_what_is_asked_for_arrives(whole):
    """NVLM-D takes the encoder alone: its connector and language model are what they would be without."""
    weights, ours = whole
    fresh = loaded(the_run("nvlm_d_tiny"))
    found = loaded(the_run("nvlm_d_tiny", *parts_from(weights.path, "vision")))
    for name, tensor in found.items():
        assert torch.equal(tensor, (ours if name.startswith("vision.") else fresh)[name]), name


def test_tied_weights_may_be_taken_apart_and_others_not_tied(tmp_path, whole):
    """Untied, as pipelines need it, the output layer begins as a copy of the embedding."""
    tied = replace(the_run("nvlm_d_tiny").model.language, tie_embeddings=True)
    source, ours = language_folder(tmp_path / "hf", tied, dtype=torch.float32, tokenizer_json=TOKENIZER)
    weights = imported(source, tmp_path / "ours")
    found = loaded(the_run("nvlm_d_tiny", *parts_from(weights.path, "language")))
    assert torch.equal(found["language.output_layer.weight"], ours["language.embedding.weight"])
    assert all(torch.equal(found[name], ours[name]) for name in ours) and "language.output_layer.weight" not in ours
    with pytest.raises(CheckpointError, match="tie_embeddings: False in the weights vs True here"):
        loaded(the_run("nvlm_h_tiny", "model.language.tie_embeddings=true", *parts_from(whole[0].path, "language")))


def test_other_cross_attention_is_left_out_and_said(whole, caplog):
    weights, ours = whole
    found = loaded(the_run("nvlm_x_tiny", "model.cross_attention.layers=[0]", *parts_from(weights.path, "language")))
    assert "gated cross-attention is left out, for it is another one (model.cross_attention.layers" in caplog.text
    assert found["language.decoder.layers.0.cross_attention.gate"] == 0
    assert torch.equal(found["language.embedding.weight"], ours["language.embedding.weight"])


def test_init_takes_a_whole_model(whole, caplog):
    """And the optimizer starts from it: in half precision it keeps its own copies, which a step at rate 0 writes back."""
    weights, ours = whole
    run = the_run("nvlm_h_tiny", f"init={weights.path}", "model.dtype=bf16")
    start = start_of(run, None)
    caplog.set_level(logging.INFO)
    assert start.told(run) == f"sft: starts from the weights of {weights.path}, with a fresh optimizer"
    found = loaded(run, from_init)
    assert all(torch.equal(found[name], ours[name].bfloat16().float()) for name in ours)
    assert "licence unknown" in caplog.text


@pytest.mark.slow
def test_a_run_that_starts_from_imported_weights(whole, tmp_path):
    weights, ours = whole
    run = the_run("nvlm_h_tiny", f"init={weights.path}", "model.dtype=bf16", "train.lr=0", "train.min_lr=0",
                  "train.trainable=[vision,connector,language]", f"run.dir={tmp_path}")
    train_all([run])
    found = loaded(replace(run, init=str(tmp_path)), from_init)
    assert all(torch.equal(found[name], ours[name].bfloat16().float()) for name in ours)


@pytest.mark.parametrize("words, reason", [
    (["model.language.ffn=256"], "model.language.ffn: 384 in the weights vs 256 here"),
    (["model.language.rope_base=5000"], "model.language.rope_base: 10000.0 in the weights vs 5000.0 here"),
    (["model.vision.mean=[0.5,0.5,0.5]"], "model.vision.mean: (0.485, 0.456, 0.406) in the weights vs (0.5, 0.5, 0.5) here"),
    (["model.connector.hidden=64"], "model.connector.hidden: 384 in the weights vs 64 here")])
def test_other_sizes_are_refused_with_both(whole, words, reason):
    run = the_run("nvlm_h_tiny", *words, *parts_from(whole[0].path, "vision", "connector", "language"))
    with pytest.raises(CheckpointError) as error:
        loaded(run)
    assert reason in str(error.value)


def test_init_of_another_architecture_or_a_part_is_refused(whole, tmp_path):
    source, _ = language_folder(tmp_path / "hf", replace(the_run("nvlm_d_tiny").model.language, tie_embeddings=True))
    alone = imported(source, tmp_path / "alone").path
    for path, reason in ((alone, "it holds no vision, only language"), (whole[0].path, "model.cross_attention.layers")):
        run = the_run("nvlm_x_tiny", f"init={path}", "model.cross_attention.layers=[0]")
        with pytest.raises(CheckpointError) as error:
            loaded(run, from_init)
        assert reason in str(error.value)


def copied(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def replaced(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("damage, reason", [
    (lambda folder: flip(folder / "model.safetensors", -5), "SHA-256 should be"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "bytes and has 5"),
    (lambda folder: (folder / "model.safetensors").unlink(), "is missing"),
    (lambda folder: replaced(folder / "weights.json", '"layers": 4', '"layers": 3'), "was changed after it was written"),
    (lambda folder: (folder / "weights.json").write_text("{}"), "has schema None"),
    (lambda folder: (folder / "weights.json").write_text("["), "cannot be read"),
], ids=["a flipped bit", "truncated", "missing", "other sizes", "no schema", "no JSON"])
def test_a_damaged_folder_is_refused(damage, reason, whole, tmp_path):
    folder = copied(whole[0].path, tmp_path / "copy")
    damage(folder)
    with pytest.raises(CheckpointError) as error:
        loaded(the_run("nvlm_d_tiny", *parts_from(folder, "language")))
    assert reason in str(error.value)


@pytest.mark.parametrize("file", ["../elsewhere.safetensors", "unhashed.safetensors"])
def test_a_file_without_a_hash_is_not_read(file, whole, tmp_path):
    """A weights.json whose own hash is right may still be written by anybody."""
    weights = WeightsFolder.read(copied(whole[0].path, tmp_path / "copy"))
    (weights.path / "weights.json").unlink()
    name, record = next(iter(weights.tensors.items()))
    replace(weights, tensors={**weights.tensors, name: replace(record, file=file)}).write()
    with pytest.raises(CheckpointError, match=f"names '{file}', which is no file of this folder"):
        loaded(the_run("nvlm_d_tiny", *parts_from(weights.path, "language")))


def test_another_vocabulary_is_refused(whole, tmp_path):
    """The same tokenizer with a spare special token more is none."""
    description = json.loads(TOKENIZER)
    vocabulary = description["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[500:502]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "other.json").write_text(json.dumps(description))
    run = the_run("nvlm_d_tiny", f"model.tokenizer={tmp_path / 'other.json'}", *parts_from(whole[0].path, "language"))
    with pytest.raises(CheckpointError, match=r"2 of 1,020 pieces of text have another id.*Set model.tokenizer="):
        loaded(run)
    extended = json.loads(TOKENIZER)
    extended["added_tokens"].append({**extended["added_tokens"][-1], "id": 1024, "content": "<extra>"})
    (tmp_path / "more.json").write_text(json.dumps(extended))
    run = the_run("nvlm_d_tiny", f"model.tokenizer={tmp_path / 'more.json'}", *parts_from(whole[0].path, "language"))
    assert torch.equal(loaded(run)["language.embedding.weight"], whole[1]["language.embedding.weight"])


def test_a_hugging_face_folder_is_refused_with_the_command(tmp_path):
    source, _ = vision_folder(tmp_path / "clip-l")
    with pytest.raises(CheckpointError) as error:
        loaded(the_run("nvlm_d_tiny", *parts_from(source, "vision")))
    assert f"nvlm import from={source} to=weights/clip-l" in str(error.value)


@pytest.mark.full
@pytest.mark.distributed
def test_every_rank_holds_its_part_under_every_layout(tmp_path):
    """Five heads and 1,025 rows on two ranks: the last of each is padding, which stays zero. Then two pipeline stages."""
    run = the_run("nvlm_d_tiny_6b", "model.language.vocab=1025")
    source, ours = whole_folder(tmp_path / "hf", run.model, dtype=torch.float32, tokenizer_json=TOKENIZER)
    weights = imported(source, tmp_path / "ours")
    assert load_file(weights.path / "model.safetensors").keys() == ours.keys()
    script = Path(__file__).with_name("weights_ranks.py")
    done = launch(script, 2, weights.path, tmp_path / "found.json", folder=tmp_path, timeout=240)
    assert done.returncode == 0, done.output[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert [facts["wrong"] for facts in found] == [[], []]
    assert all(facts["tensors"] > len(ours) for facts in found)     # split ones count once for each rank
    assert found[0]["padded"] >= 4 * 2 + 2 and found[1]["padded"] == 0
    assert all("SHA-256 should be" in facts["refused"] for facts in found)


# What is asked of imported weights


@pytest.fixture(scope="module")
def language_alone(tmp_path_factory):
    where = tmp_path_factory.mktemp("language")
    source, _ = language_folder(where / "hf", QWEN2, tokenizer_json=TOKENIZER)
    return imported(source, where / "ours").path


def ask(capsys, *words):
    code = main(["generate", *words, 'prompt=What is "this"?', "eval.max_new_tokens=3", "run.device=cpu"])
    return code, capsys.readouterr()


def test_a_language_model_alone_can_be_asked(language_alone, capsys):
    code, told = ask(capsys, f"checkpoint={language_alone}", "--json")
    assert code == 0, told.err
    assert json.loads(told.out)["checkpoint"] == str(language_alone)
    assert main(["show-config", f"checkpoint={language_alone}", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"]["language"]["hidden"] == 32 and shown["model"]["tokenizer"] == str(language_alone / "tokenizer.json")


def test_a_language_model_alone_is_not_asked_about_pictures(language_alone, capsys, tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    code, told = ask(capsys, f"checkpoint={language_alone}", f"image={tmp_path / 'x.png'}")
    assert code == 2 and "its vision encoder would be a random one" in told.err


@pytest.mark.parametrize("words", [[], ["recipe=nvlm_h_tiny", "stage=sft"]], ids=["alone", "with its recipe"])
def test_a_whole_model_can_be_asked_about_pictures(whole, words, capsys, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "red.png")
    code, told = ask(capsys, f"checkpoint={whole[0].path}", f"image={tmp_path / 'red.png'}", "--json", *words)
    assert code == 0, told.err
    assert "vision and connector and language and cross-attention from" in caplog.text
    assert json.loads(told.out)["images"] == [str(tmp_path / "red.png")]


def test_weights_bring_their_tokenizer_where_the_recipes_is_not_there(whole, capsys, caplog):
    caplog.set_level(logging.INFO)
    words = [f"checkpoint={whole[0].path}", "recipe=nvlm_h_tiny", "stage=sft"]
    code, told = ask(capsys, *words, "model.tokenizer=weights/elsewhere/tokenizer.json")
    assert code == 0, told.err
    assert f"no tokenizer at weights/elsewhere/tokenizer.json: that of {whole[0].path} is taken" in caplog.text
    groups.clear()
    assert told.out == ask(capsys, *words)[1].out, "it is the recipe's own, so the answer is too"


def test_an_encoder_alone_is_not_asked(tmp_path, capsys):
    source, _ = vision_folder(tmp_path / "hf")
    weights = imported(source, tmp_path / "ours")
    code, told = ask(capsys, f"checkpoint={weights.path}")
    assert code == 2 and "holds no language model, only vision: add recipe=NAME" in told.err
    assert WeightsFolder.read(weights.path) == weights
