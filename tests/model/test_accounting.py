import pytest

from nvlm_train.config.schema import Connector, Language, Model, Train, Vision
from nvlm_train.model.accounting import Parts, SampleWork, mfu, parameters, peak_flops, trained_components, useful_flops

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
    assert trained_components(Train(trainable=patterns)) == expected


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
