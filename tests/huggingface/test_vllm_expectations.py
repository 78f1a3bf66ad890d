"""What vLLM's NVLM_D asks of a folder, expectation by expectation, as its source says (models nvlm_d, internvl and intern_vit).

vLLM itself is not run here: docs/export.md says what that leaves open.
"""

import json
import re

import pytest
import torch
from export_toys import png, saved, tiny_run
from safetensors.torch import load_file

from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.huggingface.export import Export, export
from nvlm_train.huggingface.export_files import Folder
from nvlm_train.huggingface.export_source import open_source
from nvlm_train.huggingface.serving import vllm_obstacles

transformers = pytest.importorskip("transformers")

PAD = "<|vision_pad|>"
SIZES = {"vit": 160, "heads": 5, "llm": 128, "ffn": 384}     # of nvlm_d_tiny_6b
WORDS = ("model.language.family=qwen2", "model.language.qkv_bias=true")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """An NVLM-D of the 6B style with Qwen2 and a tokenizer that has the released model's placeholder; tags joined as in vLLM."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = load_tokenizer("tiny").file.decode().replace('"<image>"', f'"{PAD}"')
    (folder / "tokenizer.json").write_text(tokenizer)
    saved(tiny_run("nvlm_d_tiny_6b", *WORDS, f"model.tokenizer={folder / 'tokenizer.json'}"), folder / "run")
    return export(Export(str(folder / "run"), str(folder / "exported"), join=True))


@pytest.fixture(scope="module")
def tensors(served):
    return load_file(served / "model.safetensors")


@pytest.fixture(scope="module")
def config(served):
    return json.loads((served / "config.json").read_text())


def test_nothing_is_known_against_it(served):
    source = open_source(str(served.parent / "run"))
    tokenizer = load_tokenizer(str(served / "tokenizer.json"))
    assert vllm_obstacles(Folder(source, "whole", tokenizer, 7, torch.float32, True)) == []
    told = vllm_obstacles(Folder(source, "whole", load_tokenizer("tiny"), 0, torch.float32, True))
    assert len(told) == 2 and "7 dummy heads" in told[0]
    assert "its placeholder is <|vision_pad|>, the tokenizer's is <image>" in told[1]


def test_the_configuration_has_what_is_read_without_fallback(config):
    assert config["architectures"] == ["NVLM_D"] and config["model_type"] == "NVLM_D"
    read = {"select_layer": -1, "force_image_size": 32, "downsample_ratio": 0.5, "ps_version": "v2", "dynamic_image_size": True,
            "use_thumbnail": True, "min_dynamic_patch": 1, "max_dynamic_patch": 6}
    assert {key: config[key] for key in read} == read
    vision = {"image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
              "qkv_bias", "qk_normalization", "layer_norm_eps", "norm_type", "hidden_act", "initializer_factor"}
    assert vision <= config["vision_config"].keys()
    assert config["llm_config"]["architectures"] == ["Qwen2ForCausalLM"]


def test_its_configuration_class_gets_both_towers(served):
    """vLLM builds the encoder from `vision_config` and the language model from `text_config`, as attributes."""
    config = transformers.AutoConfig.from_pretrained(served, trust_remote_code=True)
    assert config.vision_config.hidden_size == SIZES["vit"]
    assert config.text_config.intermediate_size == config.get_text_config().intermediate_size == SIZES["ffn"]


def test_names_begin_with_the_three_parts(tensors):
    assert {name.split(".")[0] for name in tensors} == {"vision_model", "mlp1", "language_model"}
    projector = {name for name in tensors if name.startswith("mlp1")}
    assert projector == {"mlp1.0.weight", "mlp1.0.bias", "mlp1.1.weight", "mlp1.3.weight"}


def test_the_projector_has_its_shapes(tensors):
    wide = 4 * SIZES["vit"]
    shapes = {name: tuple(tensors[name].shape) for name in ("mlp1.0.weight", "mlp1.0.bias", "mlp1.1.weight", "mlp1.3.weight")}
    assert shapes == {"mlp1.0.weight": (wide,), "mlp1.0.bias": (wide,), "mlp1.1.weight": (SIZES["ffn"], wide),
                      "mlp1.3.weight": (SIZES["llm"], SIZES["ffn"])}


def test_the_encoder_has_seven_heads_more(tensors):
    width, padded = SIZES["vit"], (SIZES["heads"] + 7) * (SIZES["vit"] // SIZES["heads"])
    layer = "vision_model.encoder.layers.0."
    expected = {"attn.qkv.weight": (3 * padded, width), "attn.proj.weight": (width, padded), "attn.proj.bias": (width,),
                "attn.q_norm.weight": (padded,), "attn.k_norm.weight": (padded,),
                "norm1.weight": (width,), "norm2.weight": (width,), "ls1": (width,), "ls2": (width,),
                "mlp.fc1.weight": (640, width), "mlp.fc1.bias": (640,),
                "mlp.fc2.weight": (width, 640), "mlp.fc2.bias": (width,)}
    assert {name.removeprefix(layer): tuple(t.shape) for name, t in tensors.items() if name.startswith(layer)} == expected


def test_other_names_are_the_published_ones(tensors):
    numbered = {re.sub(r"\.\d+\.", ".N.", name.removeprefix("language_model."))
                for name in tensors if name.startswith("language_model.")}
    attention = {f"self_attn.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")} | {"self_attn.o_proj.weight"}
    mlp = {f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    norms = {"input_layernorm.weight", "post_attention_layernorm.weight"}
    assert numbered == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
                        *(f"model.layers.N.{name}" for name in attention | mlp | norms)}
    assert {name for name in tensors if ".embeddings." in name} == {
        f"vision_model.embeddings.{name}" for name in ("class_embedding", "patch_embedding.weight", "patch_embedding.bias",
                                                       "position_embedding")}


@pytest.mark.parametrize(("size", "tags"), [
    ((30, 30), ["<tile_global_thumbnail>"]), ((96, 32), ["<tile_1>", "<tile_2>", "<tile_3>", "<tile_global_thumbnail>"])])
def test_the_prompt_is_what_its_processor_writes(served, config, tmp_path, size, tags):
    """The processor puts <Image>, for each tile its tag and a placeholder for each visual token, and </Image> in the place of
    `<image>`, and tokenises the whole as one string. With `tags.join=joined` chat() has the same tokens."""
    words = transformers.AutoTokenizer.from_pretrained(served, trust_remote_code=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(served, trust_remote_code=True)
    tile_tokens = (config["force_image_size"] // config["vision_config"]["patch_size"]) ** 2 // 4
    written = "<Image>" + "".join(tag + PAD * tile_tokens for tag in tags) + "</Image>"
    turns = [{"role": "system", "content": config["prompt"]["system"]}, {"role": "user", "content": "<image>\nWhat is it?"}]
    text = words.apply_chat_template(turns, tokenize=False, add_generation_prompt=True).replace("<image>", written)
    (tmp_path / "picture.png").write_bytes(png(*size))
    seen = []
    model.generate = lambda input_ids, **rest: (seen.append(input_ids[0].tolist()), torch.zeros(1, 1, dtype=torch.long))[1]
    model.chat(words, [tmp_path / "picture.png"], "What is it?")
    assert seen == [words(text, add_special_tokens=False)["input_ids"]]
    assert seen[0].count(words.convert_tokens_to_ids(PAD)) == tile_tokens * len(tags)


def test_joining_changes_the_first_tag_only(served):
    """Why `tags.join` exists: in `<Image><tile_1>` the two brackets merge into one token, which training, where tags are
    tokenised alone, never saw. Later tags stand behind a placeholder, where there is nothing to merge with."""
    words = transformers.AutoTokenizer.from_pretrained(served, trust_remote_code=True)
    assert "><" in words.tokenize("<Image><tile_1>")
    assert "><" not in [*words.tokenize("<Image>"), *words.tokenize("<tile_1>")]
    assert words.tokenize(f"{PAD}<tile_2>{PAD}") == [PAD, *words.tokenize("<tile_2>"), PAD]
