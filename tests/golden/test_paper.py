"""The paper's recipes say what its Tables 10 and 11 say, value by value; the scripts' variant what NVIDIA's scripts say."""

from dataclasses import asdict

import pytest

from nvlm_train.config.compose import compose

D, X, H = range(3)
TABLES_10_AND_11 = {
    # setting: D, X, H; each in pretraining and in finetuning
    "train.steps": ((20_000, 40_000), (20_000, 20_000), (20_000, 40_000)),
    "train.global_batch": ((2048, 128), (2048, 256), (2048, 256)),
    "train.lr": ((1e-4, 2e-6), (1e-4, 1e-5), (1e-4, 1e-5)),
    "train.min_lr": ((2.5e-5, 2.5e-7), (1e-5, 1e-7), (1e-5, 1e-7)),
    "train.warmup_steps": ((500, 1000), (1000, 500), (1000, 1000)),
    "train.schedule": (("cosine", "cosine"),) * 3,
    "train.decay_steps": ((None, None),) * 3,       # not in the tables: to the last step
    "train.beta1": ((0.9, 0.9),) * 3,
    "train.beta2": ((0.95, 0.98), (0.95, 0.98), (0.98, 0.98)),
    "train.weight_decay": ((0.1, 0.1), (0.05, 0.05), (0.05, 0.05)),
    "train.clip_grad": ((10, 10), (1, 1), (1, 1)),
    "train.trainable": ((("connector",), ("connector", "language")),
                        *((("connector", "cross_attention"), ("connector", "language")),) * 2),
    "data.max_tokens": ((512, 3200), (512, 1024), (512, 1280)),
    "data.max_tiles": ((1, 6), (1, 6), (6, 6)),
    "data.thumbnail": ((True, True),) * 3,
    "data.format": (("pretrain", "chat"),) * 3,
    "layout.tensor": ((8, 8),) * 3,
    "layout.pipeline": ((1, 4), (1, 1), (1, 1)),
    "model.connector.layers": ((2, 2), (1, 1), (2, 2)),
    "model.tags.kind": (("none", "1d"), ("none", "1d"), ("1d", "1d")),
}
X_34B = {"train.global_batch": (2048, 512), "train.min_lr": (1e-5, 1e-6)}       # the one column in which the sizes differ

# Section 4.1, the backbones' published configurations, section 4.2 (Yi's tag), section 4.5 (every 6 and 8 layers).
BACKBONES = {
    "34b": {"language.layers": 60, "language.hidden": 7168, "language.heads": 56, "language.kv_heads": 8,
            "language.head_dim": 128, "language.ffn": 20480, "language.vocab": 64000, "language.rope_base": 5e6, "language.norm_eps": 1e-5,
            "language.qkv_bias": False, "language.tie_embeddings": False, "tags.global_name": "tile_global",
            "language.source": "NousResearch/Nous-Hermes-2-Yi-34B"},
    "72b": {"language.layers": 80, "language.hidden": 8192, "language.heads": 64, "language.kv_heads": 8,
            "language.head_dim": 128, "language.ffn": 29568, "language.vocab": 152064, "language.rope_base": 1e6, "language.norm_eps": 1e-6,
            "language.qkv_bias": True, "language.tie_embeddings": False, "tags.global_name": "tile_global_thumbnail",
            "language.source": "Qwen/Qwen2-72B-Instruct"},
}
ENCODER = {"vision.layers": 45, "vision.hidden": 3200, "vision.heads": 25, "vision.ffn": 12800, "vision.tile_size": 448,
           "vision.patch": 14, "vision.norm": "rms", "vision.norm_eps": 1e-6, "vision.qkv_bias": False, "vision.qk_norm": True,
           "vision.layer_scale": True, "vision.final_norm": False, "vision.source": "OpenGVLab/InternViT-6B-448px-V1-5",
           "connector.shuffle": 2, "connector.hidden": None}

# The launch scripts of Megatron-LM's examples/multimodal/nvlm: samples / batch, where they count samples.
SCRIPTS = {
    "72b": {"train.steps": (122_880_000 / 2048, 122_880_000 / 256), "train.decay_steps": (25_600_000 / 2048, 25_600_000 / 256),
            "train.warmup_steps": (41, 83_200 / 256), "train.global_batch": (2048, 256), "layout.pipeline": (1, 4)},
    "34b": {"train.steps": (122_880_000 / 2048, 30_000_000 / 128), "train.decay_steps": (25_600_000 / 2048, 25_600_000 / 128),
            "train.warmup_steps": (41, 83_200 / 128), "train.global_batch": (2048, 128), "layout.pipeline": (1, 1)},
}
SCRIPTS_OF_BOTH = {
    "train.lr": (1e-4, 2e-6), "train.min_lr": (2.5e-5, 2.5e-7), "train.schedule": ("cosine", "cosine"), "train.beta1": (0.9, 0.9),
    "train.beta2": (0.95, 0.95), "train.weight_decay": (0.1, 0.1), "train.clip_grad": (10, 10),
    "train.trainable": (("connector",), ("connector", "language")), "data.max_tokens": (512, 3200), "data.max_tiles": (1, 6),
    "data.thumbnail": (True, True), "data.format": ("chat", "chat"), "data.system_prompt": (None, "Answer the questions."),
    "data.template": ("chatml", "chatml"), "model.tags.kind": ("none", "1d"), "model.init_std": (0.014, 0.014),
    "layout.tensor": (8, 8),
}
SCRIPT_METHODS = {"72b": ["method=nvlm_d_scripts"],
                  "34b": ["method=nvlm_d_scripts_34b", "layout.pipeline=1", "layout.first_stage_layers=null"]}


def values(words: list[str], keys) -> dict:
    """Setting -> its value in pretraining and in finetuning."""
    runs = [asdict(run) for run in compose(words)]
    assert [run["stage"] for run in runs] == ["pretrain", "sft"]
    return {key: tuple(value_at(run, key) for run in runs) for key in keys}


def value_at(tree: dict, key: str):
    for part in key.split("."):
        tree = tree[part]
    return tree


@pytest.mark.parametrize("size", ["34b", "72b"])
@pytest.mark.parametrize(("column", "model"), [(D, "d"), (X, "x"), (H, "h")])
def test_paper_recipes_say_what_tables_10_and_11_say(column, model, size):
    expected = {key: of_models[column] for key, of_models in TABLES_10_AND_11.items()}
    expected |= X_34B if (model, size) == ("x", "34b") else {}
    expected["model.architecture"] = (f"nvlm_{model}",) * 2
    assert values([f"recipe=nvlm_{model}_{size}"], expected) == expected


@pytest.mark.parametrize("size", ["34b", "72b"])
@pytest.mark.parametrize("model", "dxh")
def test_paper_recipes_have_the_papers_backbones(model, size):
    every = {"cross_attention.every": {"34b": 6, "72b": 8}[size]} if model != "d" else {}
    expected = {f"model.{key}": (value, value) for key, value in (BACKBONES[size] | ENCODER | every).items()}
    assert values([f"recipe=nvlm_{model}_{size}"], expected) == expected


@pytest.mark.parametrize("size", ["34b", "72b"])
def test_the_scripts_variant_says_what_the_scripts_say(size):
    expected = SCRIPTS_OF_BOTH | SCRIPTS[size]
    assert values([f"recipe=nvlm_d_{size}", *SCRIPT_METHODS[size]], expected) == expected


@pytest.mark.parametrize("size", ["34b", "72b"])
def test_the_scripts_variant_changes_nothing_else(size):
    """What it does not set is the paper's recipe; so a value added to the one and forgotten in the other shows."""
    named = {key.split(".", 1)[1] for key in SCRIPTS_OF_BOTH | SCRIPTS[size]} | {"first_stage_layers"}
    for paper, script in zip(compose([f"recipe=nvlm_d_{size}"]), compose([f"recipe=nvlm_d_{size}", *SCRIPT_METHODS[size]])):
        for group in ("model", "train", "data", "layout", "run"):
            before, after = asdict(getattr(paper, group)), asdict(getattr(script, group))
            assert {name for name in before if before[name] != after[name]} <= named, group
