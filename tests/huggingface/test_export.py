"""`nvlm export`: what it writes beside a whole model, what it refuses, and the model card."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
import torch
from export_toys import CLIP, QWEN, SIGLIP, WeightsOnly, png, save, saved, tiny_run
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.torch import load_file

from nvlm_train.cli import main
from nvlm_train.config.dump import to_yaml
from nvlm_train.config.schema import Source as Blend
from nvlm_train.contracts import Sample, Turn
from nvlm_train.data.chat import render_prompt
from nvlm_train.data.encode import Encoder
from nvlm_train.data.packing import pack_row
from nvlm_train.data.templates import CHATML, LLAMA3, Special
from nvlm_train.data.tokenizer import Tokenizer, load_tokenizer
from nvlm_train.errors import CheckpointError, ConfigError, TrainingError
from nvlm_train.evaluation.generate_command import generate_command
from nvlm_train.huggingface.export import Export, export, unpublished
from nvlm_train.huggingface.export_files import chat_template
from nvlm_train.huggingface.model_card import licence
from nvlm_train.parallel import groups
from nvlm_train.training.stages import build_engine

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    saved(tiny_run("nvlm_d_tiny", *QWEN, "model.language.tie_embeddings=true"), folder)
    return folder


def exported(run_dir, tmp_path, **asked) -> Path:
    return export(Export(str(run_dir), str(tmp_path / "exported"), **asked))


# Parts


def test_a_language_model_alone_is_a_plain_one(tmp_path):
    run = tiny_run("nvlm_h_tiny", *QWEN)     # its cross-attention stays behind
    engine = build_engine(run)
    save(run, WeightsOnly(engine), tmp_path / "run")
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(exported(tmp_path / "run", tmp_path, part="language"),
                                                                       output_loading_info=True)
    assert type(model).__name__ == "Qwen2ForCausalLM" and not any(loading.values())
    assert model.generation_config.eos_token_id == load_tokenizer("tiny").eos_id
    encoder = Encoder(run.model, run.data, load_tokenizer("tiny"))
    sample = encoder.encode_prompt(Sample("text", "toys", (), (Turn("user", "What do you say?"), Turn("assistant", ""))))
    row = pack_row([sample], run.data.pack_tokens, encoder.tokenizer.pad_id, encoder.geometry.tile_size)
    with torch.no_grad():
        logits = model(torch.tensor(sample.tokens)[None]).logits[0]
    # float32 rounding of logits about 10: 5e-5 in the whole models of test_export_model
    assert torch.allclose(engine.logits(row, torch.arange(sample.length)), logits, atol=5e-4, rtol=0)
    engine.close()


@pytest.mark.parametrize(("words", "kind"), [(CLIP, "CLIPVisionModel"), (SIGLIP, "SiglipVisionModel")])
def test_an_encoder_alone_is_a_plain_one(tmp_path, words, kind):
    run = tiny_run("nvlm_d_tiny", *words)
    engine = build_engine(run)
    save(run, WeightsOnly(engine), tmp_path / "run")
    folder = exported(tmp_path / "run", tmp_path, part="vision")
    model, loading = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    absent = {"post_layernorm.weight", "post_layernorm.bias"} if words is CLIP else set()    # of the class token alone
    assert {name.removeprefix("vision_model.") for name in loading["missing_keys"]} == absent and not loading["unexpected_keys"]
    assert {path.name for path in folder.iterdir()} == {"config.json", "preprocessor_config.json", "model.safetensors"}
    tiles = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    colours = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(colours[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
    with torch.no_grad():
        states = model((tiles / 255 - mean) / std, output_hidden_states=True)
        theirs = states.hidden_states[-1][:, 1:] if words is CLIP else states.last_hidden_state
    # float32 rounding of features up to about 10, twice through four layers
    assert torch.allclose(engine.stages()[0].vision(tiles), theirs, atol=1e-4, rtol=0) and theirs.abs().max() > 1
    engine.close()


def test_internvit_alone_has_the_published_names_and_no_dummy_heads(run_dir, tmp_path):
    folder = exported(run_dir, tmp_path, part="vision")
    tensors = load_file(folder / "model.safetensors")
    assert tensors["embeddings.class_embedding"].shape == (1, 1, 128)
    assert tensors["encoder.layers.3.attn.qkv.weight"].shape == (3 * 128, 128)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "intern_vit_6b"


def test_files_are_cut_and_dtypes_changed_as_asked(run_dir, tmp_path):
    whole = load_file(exported(run_dir, tmp_path) / "model.safetensors")
    cut = export(Export(str(run_dir), str(tmp_path / "cut"), dtype="bf16", shard_gb=0.001))
    index = json.loads((cut / "model.safetensors.index.json").read_text())
    files = sorted({*index["weight_map"].values()})
    assert len(files) > 2 and all((cut / file).stat().st_size < 1.1e6 for file in files)
    read = {name: tensor for file in files for name, tensor in load_file(cut / file).items()}
    assert read.keys() == whole.keys()
    assert all(torch.equal(read[name], tensor.bfloat16()) for name, tensor in whole.items())
    assert json.loads((cut / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_heads_are_padded_with_zeros_or_stripped(run_dir, tmp_path):
    padded = load_file(exported(run_dir, tmp_path) / "model.safetensors")
    stripped = load_file(export(Export(str(run_dir), str(tmp_path / "stripped"), heads="stripped")) / "model.safetensors")
    name = "vision_model.encoder.layers.0.attn.qkv.weight"
    assert padded[name].shape == (3 * 11 * 32, 128) and stripped[name].shape == (3 * 4 * 32, 128)
    thirds = padded[name].unflatten(0, (3, -1))
    assert torch.equal(thirds[:, :128].flatten(0, 1), stripped[name]) and not thirds[:, 128:].any()
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("exported", "stripped")]
    assert [config["vision_config"]["num_dummy_heads"] for config in configs] == [7, 0]


# Prompts


@pytest.mark.parametrize("template", [CHATML, LLAMA3], ids=["chatml", "llama3"])
@pytest.mark.parametrize("system", ["Be \"brief\" {and} exact.\n", None])
def test_the_chat_template_writes_what_training_writes(template, system):
    written = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(chat_template(template, system))
    for talk in ([("user", "Hi {{ 1 }}")], [("system", "Other."), ("user", "a"), ("assistant", "b"), ("user", "c\n")]):
        turns = [Turn(role, text) for role, text in talk]
        segments = render_prompt([*turns, Turn("assistant", "")], 0, "chat", system, template)
        expected = "".join(part.token if isinstance(part, Special) else part.text for part in segments)
        messages = [{"role": role, "content": text} for role, text in talk]
        assert written.render(messages=messages, add_generation_prompt=True) == expected


def test_control_tokens_are_special_in_the_exported_tokenizer():
    description = json.loads(load_tokenizer("tiny").file)
    for token in description["added_tokens"]:
        token["special"] = False
    changed = json.loads(Tokenizer(json.dumps(description).encode(), "loose").file)
    assert all(token["special"] for token in changed["added_tokens"])
    assert load_tokenizer("tiny").file == Tokenizer(load_tokenizer("tiny").file, "again").file


def test_chat_says_what_nvlm_generate_says(tmp_path, capsys):
    run = tiny_run("nvlm_h_tiny")
    saved(run, tmp_path / "run")
    (tmp_path / "picture.png").write_bytes(png(96, 64))
    asked = {"checkpoint": str(tmp_path / "run"), "image": [str(tmp_path / "picture.png")], "prompt": "What is it?",
             "max_new_tokens": 6, "json": False, "temperature": 0.0, "top_p": 1.0, "seed": 0}
    generate_command([run], asked)
    groups.clear()      # the command leaves that to the end of its process
    told = capsys.readouterr().out
    folder = exported(tmp_path / "run", tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    answer = model.chat(words, asked["image"], asked["prompt"], max_new_tokens=6)
    assert told == answer + "\n" and answer


# Refusals


def refused(capsys, *words) -> str:
    assert main(["export", *words]) in (1, 2)
    return capsys.readouterr().err


def test_words_are_checked(capsys, run_dir, tmp_path):
    told = refused(capsys, "chekpoint=x", "shard_gb=big", "tags.join=both")
    for part in ("chekpoint: unknown key; did you mean checkpoint?", "to= is needed", "a number of gigabytes, got 'big'",
                 "tags.join=both"):
        assert part in told
    told = refused(capsys, f"checkpoint={run_dir}", f"to={tmp_path / 'x'}", "part=half", "dtype=int8", "heads=all", "shard_gb=0")
    for part in ("part=half is unknown; it is one of whole, language, vision", "dtype=int8", "heads=all",
                 "shard_gb=0.0 must be more"):
        assert part in told
    assert not (tmp_path / "x").exists()


def test_the_command_says_where(capsys, run_dir, tmp_path):
    assert main(["export", f"checkpoint={run_dir}", f"to={tmp_path / 'made'}"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "made")
    assert f"to={tmp_path / 'made'} exists already" in refused(capsys, f"checkpoint={run_dir}", f"to={tmp_path / 'made'}")


def test_an_unfinished_checkpoint_is_refused(capsys, run_dir, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    [step] = (copy / "checkpoints" / "sft").iterdir()
    step.rename(step.with_name(".partial-step-00000007-abc"))
    assert "no complete checkpoint in" in refused(capsys, f"checkpoint={copy}", f"to={tmp_path / 'x'}")


def test_damage_leaves_nothing_behind(run_dir, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    [file] = copy.rglob("*.distcp")
    content = bytearray(file.read_bytes())
    content[-100_000] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="was damaged or replaced"):
        exported(copy, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_too_small_a_disk_is_refused_with_both_numbers(run_dir, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**20, 0, 2**20))
    with pytest.raises(TrainingError, match=r"needs [\d.]+ MiB, and .* has 1.0 MiB free"):
        exported(run_dir, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_tokenizer_is_refused(run_dir, tmp_path):
    description = json.loads(load_tokenizer("tiny").file)
    (tmp_path / "other.json").write_text(json.dumps(description | {"truncation": None}, indent=1))
    with pytest.raises(ConfigError, match="is not the one of the checkpoint"):
        exported(run_dir, tmp_path, tokenizer=str(tmp_path / "other.json"))


def test_tensors_without_a_name_are_refused(tmp_path):
    saved(tiny_run("flamingo_tiny"), tmp_path / "run")
    with pytest.raises(ConfigError, match="no Hugging Face layout has names for a resampler"):
        exported(tmp_path / "run", tmp_path)
    assert exported(tmp_path / "run", tmp_path, part="language").is_dir()


def test_encoders_that_nobody_published_are_refused():
    vision = tiny_run("nvlm_d_tiny").model.vision
    assert unpublished(vision) == []
    assert "layer_scale=false" in unpublished(replace(vision, layer_scale=False))[0]
    assert "CLIP" in unpublished(tiny_run("nvlm_d_tiny", *CLIP, "model.vision.final_norm=true").model.vision)[0]
    assert "SigLIP" in unpublished(replace(tiny_run("nvlm_d_tiny", *SIGLIP).model.vision, final_norm=False))[0]


def test_joined_tags_are_nvlm_ds(tmp_path):
    saved(tiny_run("nvlm_x_tiny"), tmp_path / "run")
    with pytest.raises(ConfigError, match="tags.join=joined is NVLM-D's"):
        exported(tmp_path / "run", tmp_path, join=True)
    with pytest.raises(ConfigError, match="heads=padded is for InternViT"):
        saved(tiny_run("nvlm_x_tiny", *CLIP), tmp_path / "clip")
        exported(tmp_path / "clip", tmp_path, heads="padded")


# The model card


def test_the_card_tells_what_the_run_says(tmp_path):
    blend = {"pictures": Blend("shards/pictures", 3.0), "text": Blend("shards/text", 1.0, epochs=2)}
    run = tiny_run("nvlm_x_tiny", "model.language.source=Qwen/Qwen2-1.5B-Instruct", "model.language.licence=apache-2.0",
                   "model.vision.source=OpenGVLab/InternViT-300M-448px", "model.vision.licence=mit")
    run = replace(run, data=replace(run.data, blend=blend))
    trained = replace(run.train, steps=30, lr=2e-3, trainable=("connector", "cross_attention"))
    before = replace(run, stage="pretrain", train=trained)
    saved(run, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(to_yaml([before, run]))
    steps = [("pretrain", 30), ("sft", 6), ("sft", 7), ("sft", 8)]      # the last one after the checkpoint
    rows = [{"stage": stage, "step": step, "samples": 16, "tokens": 1000 + step} for stage, step in steps]
    scores = {"stage": "sft scores", "kind": "score", "task": "shapes", "scores": {"accuracy": 0.625, "questions": 80}}
    losses = {5: 2.5, 7: 1.25, 8: 9.75}
    found = [{"stage": "sft", "kind": "validation", "step": step, "loss": loss} for step, loss in losses.items()]
    found.append({**scores, "step": 7})
    for name, lines in (("metrics.jsonl", rows), ("eval.jsonl", found)):
        (tmp_path / "run" / name).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cut sh')
    card = (exported(tmp_path / "run", tmp_path) / "README.md").read_text()
    for line in ("license: other", "- Qwen/Qwen2-1.5B-Instruct", "- OpenGVLab/InternViT-300M-448px", 
                 "| vision encoder | OpenGVLab/InternViT-300M-448px | mit |", 
                 "7 of 40 steps of supervised finetuning are done.", "|  | pretraining | supervised finetuning |",
                 "| steps | 30 | 40 |", "| learning rate | 0.002 to 0.0001, cosine | 0.001 to 0.0001, cosine |",
                 "| supervised finetuning | pictures | 3 | 75.0% | as often as needed |",
                 "| pretraining | text | 1 | 25.0% | 2 |", "| samples trained on | 16 | 32 |",
                 "| tokens trained on | 1,030 | 2,013 |", "Validation loss after step 7: 1.2500.",
                 "| shapes | 7 | 62.5% | 80 |", "trust_remote_code=True", "| megatron-core |", "gated cross-attention"):
        assert line in card, line
    assert "9.75" not in card and "2.5000" not in card


def test_a_checkpoint_alone_says_what_is_not_known(run_dir, tmp_path):
    [step] = (run_dir / "checkpoints" / "sft").iterdir()
    card = (exported(shutil.copytree(step, tmp_path / "deep" / "er" / "place" / step.name), tmp_path) / "README.md").read_text()
    assert "license: unknown" in card and "| language model | unknown | unknown |" in card and "base_model" not in card
    assert "What came before is not recorded with the checkpoint." in card and "## Results" not in card


@pytest.mark.parametrize(("language", "vision", "field"), [
    ("apache-2.0", "mit", "other"), ("mit", "MIT", "mit"), ("apache-2.0", None, "unknown"),
    ("cc-by-nc-4.0", None, "cc-by-nc-4.0"), ("mit", "CC-BY-NC-4.0", "cc-by-nc-4.0"), ("qwen-research", "mit", "qwen-research")])
def test_the_licence_field_is_the_strictest(language, vision, field):
    run = tiny_run("nvlm_d_tiny")
    model = replace(run.model, language=replace(run.model.language, licence=language),
                    vision=replace(run.model.vision, licence=vision))

    folder = SimpleNamespace(source=SimpleNamespace(weights=None, run=replace(run, model=model)))
    assert licence(folder) == field
