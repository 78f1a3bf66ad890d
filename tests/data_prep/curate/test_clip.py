"""The CLIP scorer against numbers that the transformers library gave for the same folder, and its errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from curate_toys import asked, folder_of, read_all, scene, stored
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from data_prep.curate.check import Check, Scoring
from data_prep.curate.clip import load
from data_prep.passes import Judged, run_pass
from nvlm_train.data.images import decode
from nvlm_train.errors import DataError

WIDTH, LAYERS, HEADS, FFN, SHARED, PATCH, SIDE, LENGTH = 32, 2, 4, 48, 24, 8, 32, 12
WORDS = ["<|startoftext|>", "<|endoftext|>", "[unk]", "a", "red", "blue", "bar", "of"]


def _weights() -> dict[str, torch.Tensor]:
    """Every weight of a CLIPModel, from numpy's frozen generator: the same on every machine and in every version."""
    shapes = {"logit_scale": (), "visual_projection.weight": (SHARED, WIDTH), "text_projection.weight": (SHARED, WIDTH),
              "vision_model.embeddings.class_embedding": (WIDTH,),
              "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
              "vision_model.embeddings.position_embedding.weight": ((SIDE // PATCH) ** 2 + 1, WIDTH),
              "text_model.embeddings.token_embedding.weight": (len(WORDS), WIDTH),
              "text_model.embeddings.position_embedding.weight": (LENGTH, WIDTH)}
    norms = ["vision_model.pre_layrnorm", "vision_model.post_layernorm", "text_model.final_layer_norm"]
    for tower in ("vision_model", "text_model"):
        for layer in range(LAYERS):
            name = f"{tower}.encoder.layers.{layer}"
            norms += [f"{name}.layer_norm1", f"{name}.layer_norm2"]
            linears = {f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in ("q", "k", "v", "out")}
            linears |= {"mlp.fc1": (FFN, WIDTH), "mlp.fc2": (WIDTH, FFN)}
            for part, shape in linears.items():
                shapes |= {f"{name}.{part}.weight": shape, f"{name}.{part}.bias": shape[:1]}
    shapes |= {f"{norm}.{part}": (WIDTH,) for norm in norms for part in ("weight", "bias")}
    return {name: _drawn(number, shape) + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
            for number, (name, shape) in enumerate(sorted(shapes.items()))}


def _drawn(number: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(0.3 * np.random.RandomState(number).standard_normal(shape), dtype=np.float32))


def clip_folder(path: Path) -> Path:
    path.mkdir()
    save_file(_weights(), path / "model.safetensors")
    tower = {"hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
             "hidden_act": "quick_gelu", "projection_dim": SHARED}
    config = {"model_type": "clip", "projection_dim": SHARED, "vision_config": {**tower, "image_size": SIDE, "patch_size": PATCH},
              "text_config": {**tower, "vocab_size": len(WORDS), "max_position_embeddings": LENGTH, "bos_token_id": 0, "eos_token_id": 1}}
    (path / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(WORDS[:2])
    tokenizer.post_processor = processors.TemplateProcessing("<|startoftext|> $A <|endoftext|>", None, [(WORDS[0], 0), (WORDS[1], 1)])
    tokenizer.save(str(path / "tokenizer.json"))
    return path


PICTURES = [scene(1, 96, 64), scene(2, 40, 50), scene(3, 32, 32)]
TEXTS = ["a red bar", "blue", "a red bar of a blue bar of a red bar of a blue bar of a red bar"]     # the last is cut
# CLIPModel and CLIPImageProcessor of transformers 4.57.6 on the folder above, float32; a row a picture, a column a text.
EXPECTED = [[0.026767, -0.029146, 0.104534], [-0.067505, -0.079653, 0.082656], [-0.064366, 0.030507, 0.02331]]


def test_cosines_equal_those_of_transformers(tmp_path):
    clip = load(str(clip_folder(tmp_path / "clip")))
    found = [[clip([np.asarray(picture)], text) for text in TEXTS] for picture in PICTURES]
    np.testing.assert_allclose(found, EXPECTED, atol=2e-5)      # they differ by up to 0.18


def test_of_several_pictures_the_best_counts(tmp_path):
    clip = load(str(clip_folder(tmp_path / "clip")))
    assert clip([np.asarray(picture) for picture in PICTURES], TEXTS[0]) == pytest.approx(EXPECTED[0][0], abs=2e-5)


def test_samples_under_the_limit_are_left_out(tmp_path):
    folder = clip_folder(tmp_path / "clip")
    samples = [asked(f"k{number}", "?", TEXTS[0], stored(picture)) for number, picture in enumerate(PICTURES)]
    scoring = Scoring(f"data_prep.curate.clip:load={folder}", 0.0)
    manifest = run_pass("check", Judged(folder_of(tmp_path / "in", samples), Check(scoring=scoring)), tmp_path / "out")
    kept = read_all(tmp_path / "out")
    assert manifest["rejected"] == {"low_score": 2} and list(kept) == ["k0"]
    assert kept["k0"].meta["score"] == round(load(str(folder))([decode(samples[0].images[0])], TEXTS[0]), 6)


@pytest.mark.parametrize("damage, told", [
    (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json missing"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "cannot be read as a CLIP model"),
    (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as a CLIP model"),
    (lambda folder: save_file({"a": torch.zeros(1)}, folder / "model.safetensors"), "has no weight .*it is not a CLIPModel"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be read as a tokenizer"),
])
def test_a_folder_that_is_no_clip(tmp_path, damage, told):
    folder = clip_folder(tmp_path / "clip")
    damage(folder)
    with pytest.raises(DataError, match=told):
        load(str(folder))
