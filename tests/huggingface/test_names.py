"""The table of names: complete against an engine's own tensors, right in its shapes, and without loss in either direction."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from nvlm_train.config.compose import compose
from nvlm_train.config.schema import Connector, CrossAttention, Language, Model, Vision
from nvlm_train.errors import CheckpointError, ConfigError
from nvlm_train.huggingface.names import connector_entries, language_entries, nvlm_entries, vision_entries
from nvlm_train.model.accounting import parameters
from nvlm_train.model.init import shards
from nvlm_train.training.stages import build_engine

SMALL_6B = ("model.vision.hidden=160", "model.vision.heads=5", "model.vision.norm=rms", "model.vision.qk_norm=true",
            "model.vision.qkv_bias=false")
FULL_CROSS = ("model.cross_attention.qk_norm=true", "model.cross_attention.ffn=64", "model.cross_attention.kv_heads=4")
MODELS = {
    "D, 300M style": ("recipe=nvlm_d_tiny", "model.language.qkv_bias=true"),
    "D, 6B style, tied": ("recipe=nvlm_d_tiny_6b", "model.language.tie_embeddings=true"),
    "X": ("recipe=nvlm_x_tiny",),
    "H, all parts": ("recipe=nvlm_h_tiny", *SMALL_6B, *FULL_CROSS),
}
LANGUAGE = Language(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab=64)
VISION = Vision(layers=2, hidden=24, heads=3, ffn=40, tile_size=16, patch=4)
CLIP = replace(VISION, family="clip", norm="layer", qkv_bias=True, qk_norm=False, layer_scale=False, first_norm=True,
               patch_bias=False)
SIGLIP = replace(CLIP, family="siglip", first_norm=False, final_norm=True, class_token=False, patch_bias=True)


@pytest.mark.parametrize("words", MODELS.values(), ids=MODELS)
def test_the_table_holds_exactly_what_a_model_holds(words):
    [run] = compose([*words, "stage=sft", "run.device=cpu"])
    engine = build_engine(run)
    held = {shard.key: tuple(shard.global_shape) for stage in engine.stages() for shard in shards(stage.sharded_state_dict())}
    engine.close()
    entries = list(nvlm_entries(run.model))
    assert {entry.ours: entry.shape for entry in entries} == held
    assert len(entries) == len(held) > 50
    assert sum(entry.numel for entry in entries) == parameters(run.model).total
    theirs = [name for entry in entries for name in entry.theirs]
    assert max(Counter(theirs).values()) == 1


@pytest.mark.parametrize("entries", [
    lambda: language_entries(LANGUAGE), lambda: vision_entries(VISION), lambda: vision_entries(CLIP),
    lambda: vision_entries(SIGLIP), lambda: vision_entries(VISION, dummy_heads=5),
    lambda: nvlm_entries(
        Model("nvlm_x", VISION, Connector(layers=1), CrossAttention(every=1, ffn=16, qk_norm=True), LANGUAGE), 7),
], ids=["language", "internvit", "clip", "siglip", "dummy heads", "x"])
def test_join_and_split_are_inverse_to_the_bit(entries):
    for entry in entries():
        ours = torch.randn(entry.shape).to(torch.bfloat16)
        parts = entry.split(ours)
        assert [tuple(part.shape) for part in parts] == list(entry.their_shapes)
        assert len(parts) == len(entry.theirs) and all(part.dtype == torch.bfloat16 for part in parts)
        assert torch.equal(entry.join(parts), ours), entry.ours
        again = entry.split(entry.join(parts))
        assert all(torch.equal(part, same) for part, same in zip(parts, again, strict=True)), entry.ours


def numbered(entry):
    """Their tensors, every row filled with 1000 x which tensor + its row."""
    return [(1000.0 * which + torch.arange(shape[0], dtype=torch.float32)).view(-1, *[1] * (len(shape) - 1)).expand(shape)
            for which, shape in enumerate(entry.their_shapes)]


def entry_of(entries, name):
    return next(entry for entry in entries if entry.ours.endswith(name))


def test_queries_keys_and_values_lie_group_by_group():
    """4 heads of 8 in 2 groups: queries 0 to 15 with the first key and value, as Megatron reads them."""
    for kind in ("weight", "bias"):
        entry = entry_of(language_entries(LANGUAGE), f"layers.0.self_attention.linear_qkv.{kind}")
        joined = entry.join(numbered(entry))
        column = joined if kind == "bias" else joined[:, 0]
        first = [*range(16), *range(1000, 1008), *range(2000, 2008)]
        assert column.tolist() == [*first, *range(16, 32), *range(1008, 1016), *range(2008, 2016)]


def test_gate_comes_before_up():
    entry = entry_of(language_entries(LANGUAGE), "layers.1.mlp.linear_fc1.weight")
    assert [name.rsplit(".", 2)[-2] for name in entry.theirs] == ["gate_proj", "up_proj"]
    assert entry.join(numbered(entry))[:, 0].tolist() == [*range(48), *range(1000, 1048)]


@pytest.mark.parametrize("dummies", [0, 5])
def test_an_encoders_fused_heads_are_taken_apart(dummies):
    """[Q; K; V] of 3 heads of 8, dummies behind each: ours is q, k, v of the first head, then of the second."""
    padded = (3 + dummies) * 8
    entry = entry_of(vision_entries(VISION, dummy_heads=dummies), "layers.0.attention.linear_qkv.weight")
    fused = torch.arange(3 * padded, dtype=torch.float32)[:, None].repeat(1, 24)
    fused.view(3, padded, 24)[:, 24:] = 0
    heads = [[*range(head * 8, head * 8 + 8)] for head in range(3)]
    expected = [part * padded + row for rows in heads for part in range(3) for row in rows]
    assert entry.join([fused])[:, 0].tolist() == expected


def test_separate_heads_of_clip_are_interleaved():
    entry = entry_of(vision_entries(CLIP), "layers.1.attention.linear_qkv.bias")
    expected = [part * 1000 + row for head in range(3) for part in range(3) for row in range(head * 8, head * 8 + 8)]
    assert entry.join(numbered(entry)).tolist() == expected


def test_dummy_heads_that_hold_something_are_refused():
    for name in ("linear_qkv.weight", "linear_proj.weight"):
        entry = entry_of(vision_entries(VISION, dummy_heads=1), f"layers.0.attention.{name}")
        [theirs] = entry.split(torch.ones(entry.shape))
        theirs[-1, -1] = 0.25
        with pytest.raises(CheckpointError, match=r"24 .*dummy heads.*0\.25"):
            entry.join([theirs])
    norm = entry_of(vision_entries(VISION, dummy_heads=1), "layers.0.attention.q_norm.weight")
    assert torch.equal(norm.join([torch.arange(32.0)]), torch.arange(24.0)), "over zeros it says nothing"


def test_every_encoder_family_names_its_own_parts():
    def names(vision):
        return {name for entry in vision_entries(vision) for name in entry.theirs}

    assert {"embeddings.class_embedding", "encoder.layers.1.ls2", "encoder.layers.0.attn.q_norm.weight"} <= names(VISION)
    assert {"pre_layrnorm.bias", "embeddings.class_embedding", "encoder.layers.0.self_attn.out_proj.bias"} <= names(CLIP)
    assert "post_layernorm.weight" in names(SIGLIP) and "post_layernorm.weight" not in names(CLIP)
    assert not any("class_embedding" in name for name in names(SIGLIP))


@pytest.mark.parametrize("vision, wrong", [
    (replace(VISION, first_norm=True), "first_norm"), (replace(CLIP, layer_scale=True), "layer_scale"),
    (replace(SIGLIP, class_token=True), "class_token")])
def test_an_encoder_without_published_names_is_refused(vision, wrong):
    with pytest.raises(ConfigError, match=f"model.vision.{wrong}=True"):
        vision_entries(vision)


def test_a_resampler_has_no_published_names():
    with pytest.raises(ConfigError, match="resampler_tokens=8"):
        list(connector_entries(Model(connector=Connector(resampler_tokens=8))))
