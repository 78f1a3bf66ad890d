from dataclasses import replace

import pytest

from nvlm_train.config.schema import Connector, CrossAttention, Language, Model, Train, Vision
from nvlm_train.model.accounting import (
    Parts,
    SampleWork,
    mfu,
    parameters,
    peak_flops,
    trained_components,
    useful_by_part,
    useful_flops,
)

NVLM_72B = Model()
YI_34B = Language(layers=60, hidden=7168, heads=56, ffn=20480, vocab=64000, qkv_bias=False)
SMALL = Model(   # InternViT-300M and Qwen2-1.5B
    vision=Vision(layers=24, hidden=1024, heads=16, ffn=4096, norm="layer", qkv_bias=True, qk_norm=False),
    language=Language(layers=28, hidden=1536, heads=12, kv_heads=2, ffn=8960, vocab=151936, tie_embeddings=True),
)
TINY = Model(
    vision=Vision(layers=1, hidden=4, heads=2, ffn=8, tile_size=4, patch=2, qk_norm=False, layer_scale=False),
    connector=Connector(hidden=6),
    language=Language(layers=1, hidden=4, heads=2, kv_heads=1, head_dim=2, ffn=8, vocab=16, qkv_bias=False),
)
TINY_X = replace(TINY, architecture="nvlm_x", language=replace(TINY.language, layers=4), cross_attention=CrossAttention(every=2))
TINY_H = replace(TINY_X, architecture="nvlm_h")


def test_parameters_of_the_papers_models():
    sizes = parameters(NVLM_72B)
    assert sizes.vision == pytest.approx(5.536e9, rel=1e-4)
    assert sizes.connector == pytest.approx(621e6, rel=1e-3)
    assert sizes.language == pytest.approx(72.706e9, rel=1e-5)
    assert parameters(Model(language=YI_34B)).connector == pytest.approx(409e6, rel=1e-3)
    assert parameters(Model(language=YI_34B)).language == pytest.approx(34.389e9, rel=1e-4)
    assert parameters(Model(connector=Connector(layers=1))).connector == pytest.approx(105e6, rel=2e-3), "X's single linear"


def test_parameters_of_well_known_small_models_are_exact():
    """Qwen2-1.5B and InternViT-300M as published (the latter without a final norm)."""
    assert parameters(SMALL).language == 1_543_714_304
    assert parameters(SMALL).vision == 304_012_288


def test_parameters_of_well_known_encoders_are_exact():
    """CLIP ViT-L/14-336 as published; SigLIP so400m-patch14-384 without its pooling head of 15,238,352."""
    clip = replace(SMALL.vision, tile_size=336, layer_scale=False, first_norm=True, final_norm=True, patch_bias=False)
    siglip = Vision(layers=27, hidden=1152, heads=16, ffn=4304, tile_size=384, norm="layer", qkv_bias=True, qk_norm=False,
                    layer_scale=False, final_norm=True, class_token=False)
    assert parameters(replace(SMALL, vision=clip)).vision == 303_507_456
    assert parameters(replace(SMALL, vision=siglip)).vision == 428_225_600 - 15_238_352


@pytest.mark.parametrize("language, every, attention, with_ffn, linear", [
    (YI_34B, 6, 1.17e9, 6.5e9, 92e6), (Language(), 8, 1.51e9, 10.0e9, 105e6),
])
def test_parameters_of_the_papers_cross_attention(language, every, attention, with_ffn, linear):
    """Ten layers in both sizes. Bounds of what the paper leaves open: grouped queries alone; full heads and a feed-forward."""
    cross = CrossAttention(every=every)
    slim = Model(architecture="nvlm_x", language=language, connector=Connector(layers=1), cross_attention=cross)
    full = replace(slim, cross_attention=CrossAttention(every=every, kv_heads=language.heads, ffn=language.ffn))
    assert parameters(slim).cross_attention == pytest.approx(attention, rel=5e-3)
    assert parameters(full).cross_attention == pytest.approx(with_ffn, rel=1e-2)
    assert parameters(slim).connector == pytest.approx(linear, rel=5e-3)
    assert parameters(slim).language == parameters(replace(slim, architecture="nvlm_d")).language
    assert parameters(replace(slim, architecture="nvlm_d")).cross_attention == 0
    assert parameters(replace(slim, architecture="nvlm_h")) == parameters(slim)


def test_parameters_of_cross_attention_by_hand():
    """Two layers: width 4, two query heads and one key head of 2, a norm and a gate; then everything that can be added."""
    assert parameters(TINY_X).cross_attention == 2 * (4 * 4 + 2 * 4 * 2 + 4 * 4 + 4 + 1)
    more = CrossAttention(layers=(3,), heads=4, kv_heads=2, qk_norm=True, ffn=6)
    assert parameters(replace(TINY_X, cross_attention=more)).cross_attention == (
        (4 * 8 + 2 * 4 * 4 + 8 * 4 + 4 + 1) + 2 * 2 + (3 * 4 * 6 + 4 + 1))


def test_parameters_of_the_resampler_by_hand():
    resampled = replace(TINY, connector=Connector(hidden=6, resampler_tokens=3, resampler_layers=2))
    layer = 4 * 16 + (4 * 16 + 16 * 4) + 3 * (4 + 4)
    assert parameters(resampled).connector - parameters(TINY).connector == 3 * 4 + 2 * layer + (4 + 4)


def test_parameters_by_hand():
    vision = (3 * 4 * 4 + 4) + 5 * 4 + 4 + (4 * 16 + 4) + (2 * 4 * 8 + 8 + 4) + 2 * 4
    connector = 2 * 16 + 16 * 6 + 6 * 4
    language = 2 * 16 * 4 + (4 * (2 + 1 + 1) * 2 + 4 * 4 + 3 * 4 * 8 + 2 * 4) + 4
    assert parameters(TINY) == Parts(vision, connector, language)


def test_flops_by_hand_with_everything_frozen_but_the_connector():
    """One tile of 4 patches (and a class token) that gives 1 visual token, in a sample of 5 tokens with 2 supervised."""
    found = useful_flops(TINY, {"connector"}, [SampleWork(5, 1, 2)])
    assert found.vision == 5 * 2 * (4 * 16 + 2 * 4 * 8) + 4 * 5 * 5 * 4 + 4 * 2 * 12 * 4
    assert found.connector == 2 * (16 * 6 * 2 + 6 * 4 * 3), "no input gradient below the first linear"
    linears, attention = 5 * 2 * (4 * (2 + 2 + 1 + 1) * 2 + 3 * 4 * 8), 4 * 15 * 4
    assert found.language == (linears + 2 * 2 * 4 * 16) * 2 + attention * 3


def test_flops_of_an_encoder_without_class_token_by_hand():
    bare = replace(TINY, vision=replace(TINY.vision, class_token=False))
    assert useful_flops(bare, {"connector"}, [SampleWork(5, 1, 2)]).vision == (
        4 * 2 * (4 * 16 + 2 * 4 * 8) + 4 * 4 * 4 * 4 + 4 * 2 * 12 * 4)


TINY_READS = SampleWork(5, 2, 2, memory_tokens=2, readers=3, pairs=5)
# Forward operations of TINY_X on it: a layer's attention and feed-forward matrices, logits, causal attention.
PROJECTIONS, MLP, LOGITS, CAUSAL = 5 * 2 * 4 * (2 + 2 + 1 + 1) * 2, 5 * 2 * 3 * 4 * 8, 2 * 2 * 4 * 16, 4 * 15 * 4
# And of one cross-attention: three readers' queries or outputs, keys and values of two memory tokens, five pairs.
QUERIES, KEYS, PAIRS = 3 * 2 * 4 * 4, 2 * 2 * 4 * (2 + 2), 4 * 5 * 4


def test_flops_of_x_by_hand_with_a_frozen_language_model():
    """Cross-attention in the second and fourth of four layers: nothing under the first one is gone back through."""
    found = useful_flops(TINY_X, {"connector", "cross_attention"}, [TINY_READS])
    assert found.language == PROJECTIONS * (4 + 2) + MLP * (4 + 3) + LOGITS * 2 + CAUSAL * (4 + 2 * 2)
    assert found.cross_attention == 2 * (QUERIES * 3 + KEYS * 3 + PAIRS * 3) + QUERIES * (2 + 3), "nothing is under the first"
    assert found.vision == 2 * useful_flops(TINY, {"connector"}, [SampleWork(5, 1, 2)]).vision
    assert found.connector == 2 * useful_flops(TINY, {"connector"}, [SampleWork(5, 1, 2)]).connector


def test_flops_of_h_by_hand_with_a_frozen_language_model():
    """The thumbnail is in the sequence, so gradients go down to the first layer; not if only cross-attention is trained."""
    found = useful_flops(TINY_H, {"connector", "cross_attention"}, [TINY_READS])
    assert found.language == (4 * (PROJECTIONS + MLP) + LOGITS) * 2 + 4 * CAUSAL * 3
    assert found.cross_attention == 2 * 3 * (2 * QUERIES + KEYS + PAIRS)
    alone = useful_flops(TINY_H, {"cross_attention"}, [TINY_READS])
    assert alone.language == PROJECTIONS * (4 + 2) + MLP * (4 + 3) + LOGITS * 2 + CAUSAL * (4 + 2 * 2)
    assert alone.cross_attention == 2 * (QUERIES * 3 + KEYS * 2 + PAIRS * 3) + QUERIES * (2 + 3)


@pytest.mark.parametrize("model", [TINY_X, TINY_H])
def test_a_trained_language_model_costs_three_times_its_forward(model):
    forward = useful_flops(model, (), [TINY_READS])
    assert forward.language == 4 * (PROJECTIONS + MLP + CAUSAL) + LOGITS
    assert forward.cross_attention == 2 * (2 * QUERIES + KEYS + PAIRS)
    found = useful_flops(model, {"connector", "language", "cross_attention"}, [TINY_READS])
    assert (found.language, found.cross_attention) == (3 * forward.language, 3 * forward.cross_attention)


def test_the_language_models_parts_by_hand():
    """Two of four layers above the first cross-attention hand gradients down through attention, three through the feed-forward."""
    fed = replace(TINY_X, cross_attention=CrossAttention(every=2, ffn=6))
    trained, text = {"connector", "cross_attention"}, [SampleWork(5, 0, 2)]
    found = useful_by_part(fed, trained, text * 2)
    assert (found["self_attention"], found["mlp"], found["output"]) == (
        2 * (PROJECTIONS * (4 + 2) + CAUSAL * (4 + 2 * 2)), 2 * MLP * (4 + 3), 2 * LOGITS * 2)
    assert sum(found.values()) == useful_flops(fed, trained, text * 2).total


def test_text_reads_nothing_and_pays_only_for_a_feed_forward_of_cross_attentions_own():
    text, trained = [SampleWork(5, 0, 2)], {"connector", "cross_attention"}
    assert useful_flops(TINY_X, trained, text) == Parts(language=4 * (PROJECTIONS + MLP + CAUSAL) + LOGITS)
    fed = replace(TINY_X, cross_attention=CrossAttention(every=2, ffn=6))
    found, matrix = useful_flops(fed, trained, text), 5 * 2 * 4 * 6
    assert found.cross_attention == matrix * (2 + 2 + 3) + matrix * (3 + 3 + 3)
    assert found.language == PROJECTIONS * (4 + 2) + MLP * (4 + 3) + LOGITS * 2 + CAUSAL * (4 + 2 * 2)
    assert useful_flops(fed, (), text).cross_attention == 2 * 3 * matrix


def test_flops_of_the_resampler_by_hand():
    """Three learned queries read one tile token and each other, twice; the linears before it see the one token."""
    resampled = replace(TINY, connector=Connector(hidden=6, resampler_tokens=3, resampler_layers=2))
    work = [SampleWork(5, 1, 2)]
    linears, attention = 2 * 16 * (3 + 4 + 4 + 3) + 2 * 3 * (4 * 16 + 16 * 4), 4 * 3 * 4 * 4
    for trained, times in (((), 1), ({"vision"}, 2), ({"connector"}, 3)):
        more = useful_flops(resampled, trained, work).connector - useful_flops(TINY, trained, work).connector
        assert more == 2 * (linears * times + attention * (3 if trained else 1))


def peer_formula(samples, backward):
    """The usual estimate (2 operations a multiply-add, causal attention at half of the square) for SMALL, spelled out."""
    per_token = 2 * 28 * (1536 * (12 + 2 * 2) * 128 + 12 * 128 * 1536 + 3 * 1536 * 8960)
    language = sum(s.tokens * per_token + 28 * 2 * s.tokens**2 * 12 * 128 + s.supervised * 2 * 1536 * 151936 for s in samples)
    tile = 24 * (1025 * 2 * (4 * 1024**2 + 2 * 1024 * 4096) + 4 * 1025**2 * 1024)
    return backward * language, sum(s.tiles for s in samples) * tile


@pytest.mark.parametrize("trained, backward, samples", [
    ({"connector"}, 2, [SampleWork(256 + 60, 1, 52), SampleWork(256 + 18, 1, 10), SampleWork(256 + 250, 1, 242)]),
    ({"connector", "language"}, 3, [SampleWork(7 * 256 + 140, 7, 84), SampleWork(500, 0, 300), SampleWork(3100, 7, 800)]),
])
def test_flops_agree_with_the_usual_estimate_to_one_percent(trained, backward, samples):
    language, vision = peer_formula(samples, backward)
    found = useful_flops(SMALL, trained, samples)
    assert found.language == pytest.approx(language, rel=0.01)
    assert found.vision == pytest.approx(vision, rel=0.01)


def test_backward_is_counted_where_a_gradient_is_used():
    image, text = [SampleWork(300, 1, 20)], [SampleWork(300, 0, 20)]

    def of(trained, samples):
        return useful_flops(SMALL, trained, samples)

    forward = of((), image)
    assert of({"language"}, text).language == 3 * of((), text).language
    assert of({"connector"}, text).language == of((), text).language, "text under a frozen language model trains nothing"
    assert of({"connector"}, text).vision == of({"connector"}, text).connector == 0
    assert forward.language < of({"connector"}, image).language < 3 * forward.language
    assert of({"connector", "language"}, image).language == 3 * forward.language
    assert of({"connector", "language"}, image).vision == forward.vision, "a frozen encoder costs its forward"
    everything = of({"vision", "connector", "language"}, image)
    assert everything == forward.scaled(3)


def test_packing_does_not_change_the_count():
    """Attention is counted by each sample's length, not the row's."""
    a, b = SampleWork(100, 0, 10), SampleWork(300, 1, 20)
    apart = useful_flops(SMALL, {"language"}, [a]) + useful_flops(SMALL, {"language"}, [b])
    assert useful_flops(SMALL, {"language"}, [a, b]) == apart
    assert useful_flops(SMALL, {"language"}, [SampleWork(400, 1, 30)]).language > apart.language


@pytest.mark.parametrize("patterns, expected", [
    (("connector",), {"connector"}), (("connector", "language"), {"connector", "language"}),
    (("language.decoder.layers.0.*",), {"language"}), (("vis*",), {"vision"}), (("*",), {"vision", "connector", "language"}),
    (("*.bias",), {"vision", "connector", "language"}), (("languages",), set()),
])
def test_trained_components_of_patterns(patterns, expected):
    assert trained_components(TINY, Train(trainable=patterns)) == expected


@pytest.mark.parametrize("patterns, expected", [
    (("cross_attention",), {"cross_attention"}), (("language",), {"language", "cross_attention"}),
    (("*",), {"vision", "connector", "language", "cross_attention"}),
    (("connector", "cross_attention"), {"connector", "cross_attention"}),
    (("language.*.cross_attention.gate",), {"cross_attention"}), (("language.*.cross_attn_bda.*",), {"cross_attention"}),
])
def test_cross_attention_is_trained_by_name_or_with_its_language_model(patterns, expected):
    assert trained_components(TINY_X, Train(trainable=patterns)) == expected


@pytest.mark.parametrize("device, peak", [
    ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12),
    ("NVIDIA A10G", 70e12), ("NVIDIA A10", 125e12), ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12), ("NVIDIA B200", 2250e12),
    ("NVIDIA H20", 148e12), ("AMD Instinct MI300X", 1307e12), ("Some CPU", None), (None, None),
])
def test_peaks_by_device_name(device, peak):
    assert peak_flops(device) == peak


def test_mfu():
    assert mfu(989e12, 2.0, 4, 989e12) == pytest.approx(0.125)
    assert mfu(1e12, 2.0, 4, None) is None
