"""Each rule refuses what it is for, in words that hold both numbers, and lets sound runs pass."""

from dataclasses import replace

import pytest

from nvlm_train.config import rules
from nvlm_train.config.compose import compose, recipe_names
from nvlm_train.config.schema import Engine
from nvlm_train.errors import ConfigError

TINY = "recipe=nvlm_d_tiny"


def problems(*overrides: str, recipe: str = TINY) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose([recipe, "stage=sft", *overrides])
    return caught.value.problems


BROKEN = {
    "train.steps=0": "train.steps=0 must be at least 1",
    "train.global_batch=0": "train.global_batch=0 must be at least 1",
    "train.min_lr=1": "train.min_lr=1.0 is above train.lr=0.001",
    "train.warmup_steps=40": "train.warmup_steps=40 must be less than train.steps=40",
    "train.beta2=1": "must lie in [0, 1)",
    "train.trainable=[]": "train.trainable is empty",
    "train.trainable=[conector]": "did you mean connector?",
    "train.lr_multipliers={vision:-1}": "train.lr_multipliers.vision=-1.0 must be at least 0",
    "train.schedule=cosin": "train.schedule: 'cosin' is none of cosine, constant; did you mean cosine?",
    "data.format=chatml": "data.format: 'chatml' is none of pretrain, chat; did you mean chat?",
    "data.features=always": "data.features: 'always' is none of auto, off, require",
    "model.dtype=fp16": "is none of auto, bf16, fp32",
    "model.recompute=all": "is none of none, selective, full",
    "model.recompute_parts=[mpl]": "model.recompute_parts names 'mpl', which is none of attention, mlp, cross_attention, connector, vision",
    "model.recompute_parts=[mlp,mlp]": "model.recompute_parts names mlp 2 times",
    "model.recompute_parts=[cross_attention]": "model.recompute_parts has cross_attention, which nvlm_d has none of",
    "model.recompute_parts=[vision]": "but a frozen encoder (train.trainable=['connector', 'language']) keeps nothing",
    "train.optimizer_state=fp16": "train.optimizer_state: 'fp16' is none of fp32, bf16",
    "model.kernels=cudnn": "is none of auto, torch, te, apex",
    "model.fp8=e4m3": "model.fp8: 'e4m3' is none of none, current, delayed, mxfp8",
    "model.fp8=current": "model.fp8=current gains nothing at this model's sizes: its largest linear layer, mlp.linear_fc1, is 128 wide",
    "model.fp8_layers=attention": "model.fp8_layers: 'attention' is none of auto, mlp, all",
    "model.tags.kind=3d": "is none of none, 1d, 2d_grid, 2d_bbox",
    "model.vision.norm=batch": "is none of rms, layer",
    "model.vision.activation=relu": "is none of gelu, quick_gelu, gelu_tanh",
    "model.vision.mean=[0.5]": "model.vision.mean=[0.5] has 1 numbers: give 3, for red, green and blue",
    "model.vision.mean=[123.7,116.3,103.5]": "divide numbers for 0 to 255 by 255",
    "model.vision.std=[0.5,0,0.5]": "model.vision.std=[0.5, 0.0, 0.5] must lie above 0 and at most at 1",
    "model.connector.layers=3": "model.connector.layers: 3 is none of 1, 2",
    "run.wandb=yes": "is none of off, offline, online",
    "run.device=tpu": "is none of auto, cpu, cuda",
    "model.architecture=nvlm_y": "model.architecture: 'nvlm_y' is none of nvlm_d, nvlm_x, nvlm_h",
    "train.trainable=[cross_attention]": "train.trainable: cross_attention is no part of model.architecture=nvlm_d",
    "train.lr_multipliers={cross_attention:2}": "train.lr_multipliers: cross_attention is no part of model.architecture=nvlm_d",
    "model.connector.resampler_tokens=-1": "model.connector.resampler_tokens=-1 must be at least 0",
    "model.connector.resampler_layers=0": "model.connector.resampler_layers=0 must be at least 1",
    "model.cross_attention.every=0": "model.cross_attention.every=0 must be at least 1",
    "model.cross_attention.kv_heads=0": "model.cross_attention.kv_heads=0 must be at least 1",
    "model.cross_attention.ffn=-1": "model.cross_attention.ffn=-1 must be at least 0",
    "model.tags.max_tokens=0": "model.tags.max_tokens=0 must be at least 1",
    "train.decay_steps=4": "train.warmup_steps=4 must be less than train.decay_steps=4",
    "engine=horovod": "engine.name: 'horovod' is none of megatron, deepspeed",
    "engine={name:deepspeed,zero:4}": "engine.zero: 4 is none of 1, 2, 3",
    "engine.zero=3": "engine.zero=3 is DeepSpeed's, and engine=megatron: add engine=deepspeed, or leave it out",
    "engine.offload=optimizer": "engine.offload=optimizer is DeepSpeed's, and engine=megatron",
    "layout.context=3": "data.pack_tokens=512 must be a multiple of 6 for layout.context=3: use 516",
    "data.max_tokens=513": "data.max_tokens=513 is more than data.pack_tokens=512",
    "data.max_tokens=16": "data.max_tokens=16 leaves no room for text beside one tile of 16 tokens",
    "data.pack_tiles=6": "one image may have 7 tiles (data.max_tiles=6 and a thumbnail), but data.pack_tiles=6: an image must "
                         "fit into one row; raise data.pack_tiles",
    "model.vision.tile_size=33": "model.vision: tile size 33 px is not a multiple of the patch, 4 px",
    "model.vision.tile_size=36": "9 patches a side cannot be shuffled 2x2",
    "model.vision.heads=3": "model.vision.heads=3 must divide model.vision.hidden=128",
    "model.language.kv_heads=3": "model.language.kv_heads=3 must divide model.language.heads=4",
    "model.language.head_dim=33": "model.language.head_dim=33 must be even",
    "data.blend={}": "data.blend is empty",
    "data.blend.images.weight=0": "data.blend.images.weight=0.0 must be greater than 0",
    "data.blend.images.epochs=0": "data.blend.images.epochs=0.0 must be greater than 0",
    "data.blend.images.path=": "data.blend.images.path is empty",
    "data.validation.more.weight=1": "data.validation.more.path is empty",
    "layout.tensor=4": "layout.tensor=4 must divide model.language.kv_heads=2",
    "layout.pipeline=3": "model.language.layers=4 cannot be split evenly over 3 pieces",
    "layout.virtual=2": "layout.virtual=2 needs layout.pipeline > 1",
    "layout.first_stage_layers=2": "layout.first_stage_layers=2 needs layout.pipeline > 1",
    "run.dir=": "run.dir is empty",
    "run.dir=~/runs": "starts with ~",
}


@pytest.mark.parametrize("override", BROKEN)
def test_rule_refuses(override):
    (problem,) = problems(override)
    assert BROKEN[override] in problem


@pytest.mark.parametrize(("overrides", "sentence"), [
    (["layout.pipeline=2", "model.language.tie_embeddings=true"], "tie_embeddings needs layout.pipeline=1"),
    (["layout.pipeline=2", "layout.virtual=4"], "cannot be split evenly over 8 pieces"),
    (["layout.pipeline=2", "layout.first_stage_layers=0"], "at least one decoder layer on the first stage"),
    (["layout.pipeline=2", "layout.first_stage_layers=4"], "leaves none of model.language.layers=4"),
    (["layout.pipeline=3", "layout.first_stage_layers=1"], "the 3 layers after layout.first_stage_layers=1"),
    (["layout.pipeline=2", "layout.virtual=2", "layout.first_stage_layers=1"], "1 on the first, 3 on each other"),
    (["layout.tensor=2", "layout.sequence=true", "data.pack_tokens=511"], "must divide data.pack_tokens=511"),
    (["layout.tensor=2", "model.connector.hidden=33"], "must divide model.connector.hidden=33"),
    (["layout.context=2", "model.kernels=te"], "layout.context=2 with model.kernels=te: only torch's attention"),
    (["layout.context=2", "layout.tensor=3", "layout.sequence=true", "data.pack_tokens=1026", "model.language.heads=6",
      "model.language.kv_heads=3", "model.language.ffn=384", "model.vision.ffn=384", "model.connector.hidden=96"],
     "data.pack_tokens=1026 must be a multiple of 12 for layout.context=2 and layout.sequence over layout.tensor=3: use 1032 or 1020"),
    (["layout.tensor=2", "model.vision.ffn=255"], "or set layout.share_tiles=true, which leaves the encoder whole"),
    (["layout.share_tiles=true", "train.trainable=[vision,connector]"], "layout.share_tiles=true needs a frozen vision encoder"),
])
def test_rules_of_the_layout(overrides, sentence):
    (problem,) = problems(*overrides)
    assert sentence in problem


SEVEN = ("model.language.hidden=3584", "model.language.ffn=18944", "model.language.heads=28", "model.language.kv_heads=4",
         "model.language.head_dim=128")


@pytest.mark.parametrize(("overrides", "sentence"), [
    (["model.fp8=delayed"], "needs model.kernels=te, it is auto: set that, or use model.fp8=current, which torch computes too"),
    (["model.fp8=mxfp8", "model.kernels=torch"], "model.fp8=mxfp8 needs model.kernels=te, it is torch"),
    (["model.fp8=current", "model.kernels=apex"], "apex has no fp8; use model.kernels=torch or te, or model.fp8=none"),
    (["model.fp8=current", "run.device=cpu"], "only GPUs compute in fp8; use model.fp8=none"),
    (["model.fp8=current", "engine=deepspeed"], "ZeRO moves weights about while their fp8 copies are in use; use engine=megatron"),
    (["model.fp8=current", "model.kernels=te", "model.fp8_layers=mlp"], "Transformer Engine's layers are all in fp8; leave it out"),
    (["model.fp8=current", "data.pack_tokens=520"], "data.pack_tokens=520 must be a multiple of 16, for model.fp8=current: use 528 or 512"),
    (["model.fp8=current", "model.language.ffn=18948"], "model.language's ffn of 18948 is no multiple of 16"),
    (["model.fp8=current", "model.fp8_layers=all", "model.language.head_dim=18", "model.language.kv_heads=2"], "heads x head_dim"),
])
def test_rules_of_fp8_by_torch(overrides, sentence):
    found = problems(*SEVEN, *overrides)
    assert sum(sentence in problem for problem in found) >= 1 and all("fp8" in problem for problem in found)


def test_fp8_by_torch_looks_at_a_ranks_sizes_and_at_the_layers_it_takes():
    for own in ([], ["model.language.head_dim=126"], ["model.language.ffn=9472", "layout.tensor=2"]):    # qkv and proj stay in bf16
        compose([TINY, "stage=sft", *SEVEN, "model.fp8=current", *own])
    (problem,) = problems(*SEVEN, "model.fp8=current", "model.language.ffn=9472", "layout.tensor=4")
    assert "gains nothing at this model's sizes a rank (layout.tensor=4): its largest linear layer, mlp.linear_fc1, is 3584 wide in" in problem
    assert "in x out / (in + out) = 2040, below 2500" in problem


def test_a_whole_encoder_need_not_divide():
    [run] = compose([TINY, "stage=sft", "layout.tensor=2", "model.vision.ffn=255", "layout.share_tiles=true"])
    assert run.layout.share_tiles and run.model.vision.ffn % run.layout.tensor


@pytest.mark.parametrize(("overrides", "sentence"), [
    (["train.beta2=0.9995"], "with train.beta2=0.9995: rounding would add up to 12% of a moment; use train.beta2=0.999 or less"),
    (["engine=deepspeed"], "engine=deepspeed has an optimizer of its own; use train.optimizer_state=fp32"),
    (["model.kernels=te"], "is torch's AdamW's, and model.kernels=te takes another"),
    (["model.recompute=full", "model.recompute_parts=[mlp]"], "model.recompute=full computes whole decoder layers again: leave mlp out"),
])
def test_rules_of_what_saves_memory(overrides, sentence):
    (problem,) = problems("train.optimizer_state=bf16", *overrides)
    assert sentence in problem


@pytest.mark.parametrize(("overrides", "sentence"), [
    (["model.fp8=current", "model.dtype=fp32"], "fp8 is rounded from bf16; use model.dtype=bf16, or model.fp8=none"),
    (["model.fp8=delayed", "run.device=cpu"], "only GPUs compute in fp8; use model.fp8=none"),
    (["model.fp8=mxfp8", "data.pack_tokens=528"],
     "data.pack_tokens=528 must be a multiple of 32, for model.fp8=mxfp8: use 544 or 512"),
    (["model.fp8=current", "layout.tensor=2", "layout.sequence=true", "data.pack_tokens=528"],
     "data.pack_tokens=528 must be a multiple of 16 times layout.tensor=2, over which layout.sequence splits a row"),
    (["model.fp8=current", "model.language.ffn=200"],
     "model.language's ffn of 200 is no multiple of 16, which model.fp8=current needs"),
])
def test_rules_of_fp8(overrides, sentence):
    (problem,) = problems("model.kernels=te", *overrides)
    assert sentence in problem


def test_scales_that_no_checkpoint_holds_are_told():
    (run,) = compose([TINY, "stage=sft", "model.kernels=te", "model.fp8=delayed"])
    assert any("model.fp8=delayed" in note and "resume" in note for note in rules.notes(run))


SOUND = [
    ["model.fp8=current", "model.fp8_layers=all"], ["model.fp8_layers=mlp"],
    ["model.kernels=te", "model.fp8=current"], ["model.kernels=te", "model.fp8=current", "model.fp8_layers=all"], ["model.kernels=te", "model.fp8=mxfp8", "layout.tensor=2"], ["model.kernels=apex"],
    ["layout.tensor=2"], ["layout.tensor=2", "model.language.vocab=1025"], ["layout.pipeline=2"], ["layout.pipeline=4"], ["layout.pipeline=2", "layout.virtual=2"],
    ["layout.pipeline=2", "layout.first_stage_layers=1"],
    ["layout.pipeline=2", "layout.virtual=2", "layout.first_stage_layers=2"], ["layout.tensor=2", "layout.sequence=true"],
    ["layout.context=2"], ["layout.context=4", "layout.tensor=2", "layout.sequence=true", "layout.pipeline=2"],
    ["train.lr_multipliers={vision:0.1}"], ["data.max_tiles=13"], ["data.max_tiles=14", "data.thumbnail=false"],
    ["data.max_tiles=1", "data.pack_tiles=1"],
    ["train.trainable=[vision,connector,language]"], ["train.trainable=['language.*.norm*']"],
    ["train.min_lr=1e-3"], ["train.warmup_steps=0"], ["train.clip_grad=0"], ["model.connector.layers=1"],
]


@pytest.mark.parametrize("overrides", SOUND, ids=" ".join)
def test_sound_layouts_and_budgets_pass(overrides):
    (run,) = compose([TINY, "stage=sft", *overrides])
    assert rules.problems(run) == []


def test_an_odd_number_of_vision_heads_is_no_obstacle_to_tensor_parallelism():
    (run,) = compose(["recipe=nvlm_d_tiny_6b", "stage=sft", "layout.tensor=2"])
    assert run.model.vision.heads % run.layout.tensor == 1


def test_all_rules_report_together_and_shared_problems_once():
    with pytest.raises(ConfigError) as caught:
        compose([TINY, "layout.tensor=4", "data.format=chatml", "stages.sft.train.warmup_steps=99"])
    told = caught.value.problems
    assert sum("data.format" in text for text in told) == 1
    assert sum("kv_heads" in text for text in told) == 1
    assert [text for text in told if text.endswith("(stage sft)")] == [
        "train.warmup_steps=99 must be less than train.steps=40: lr would never be reached (stage sft)"]


def test_impossible_sizes_do_not_hide_other_problems_nor_crash():
    told = problems("model.vision.patch=0", "layout.tensor=0", "engine=horovod")
    assert told == ["model.vision.patch=0 must be at least 1", "layout.tensor=0 must be at least 1",
                    "engine.name: 'horovod' is none of megatron, deepspeed"]


def test_deepspeed_has_no_model_parallelism():
    told = problems("engine=deepspeed", "layout.tensor=2", "layout.pipeline=2", "layout.context=2", "model.kernels=torch")
    assert [text.split(", it is 2")[0] for text in told] == [
        f"engine=deepspeed needs layout.{key}=1" for key in ("tensor", "pipeline", "context")]
    told = problems("engine=deepspeed", "layout.tensor=2", "layout.pipeline=2", "model.kernels=te")
    why = "ZeRO shares the model out over data-parallel ranks only"
    assert told == [
        *(f"engine=deepspeed needs layout.{key}=1, it is 2: {why}; set layout.{key}=1, or use engine=megatron"
          for key in ("tensor", "pipeline")),
        "engine=deepspeed runs torch's kernels only, and model.kernels=te: use model.kernels=auto, or engine=megatron"]


@pytest.mark.parametrize("words", [
    ["engine=deepspeed", "engine.zero=3"], ["engine.zero=3", "engine=deepspeed"], ["engine.name=deepspeed", "engine.zero=3"],
    ["engine={name:deepspeed,zero:3}"]], ids=str)
def test_an_engine_may_be_given_by_its_name(words):
    assert {run.engine for run in compose([TINY, *words])} == {Engine("deepspeed", zero=3)}


def test_stages_of_one_run_share_one_model():
    with pytest.raises(ConfigError) as caught:
        compose([TINY, "stages.sft.model.language.layers=2", "stages.sft.model.tokenizer=other.json"])
    assert caught.value.problems == [
        "model.language.layers is 4 in pretrain and 2 in sft: stages of one run share one model",
        "model.tokenizer is tiny in pretrain and other.json in sft: stages of one run share one tokenizer"]


def test_notes_are_not_problems():
    (run,) = compose([TINY, "stage=sft", "layout.sequence=true", "model.tags.kind=none"])
    assert len(rules.notes(run)) == 2 and rules.problems(run) == []
    told = [(name, rules.notes(run)) for name in recipe_names() for run in compose([f"recipe={name}"])]
    assert len(told) >= 10
    assert {name for name, found in told if found} == {"internvl2_tiny", "llama3v_tiny"}, "designs with tiles and no tags"


def test_rows_that_need_no_sharing_are_told():
    """Samples of at most 256 tokens: half of 512 is enough for each, half of 508 is not."""
    (run,) = compose([TINY, "stage=sft", "layout.context=2"])
    (note,) = rules.notes(run)
    assert "data.max_tokens=256: rows of 256 without it learn the same" in note
    assert rules.notes(replace(run, data=replace(run.data, pack_tokens=508))) == []


def test_world_size():
    (run,) = compose([TINY, "stage=sft", "layout.tensor=2", "layout.pipeline=2"])
    assert [rules.check_world(run, size) for size in (4, 8, 64)] == [1, 2, 16]
    with pytest.raises(ConfigError, match="6 processes cannot be split into groups of 4"):
        rules.check_world(run, 6)
    with pytest.raises(ConfigError, match="2 processes cannot be split into groups of 4"):
        rules.check_world(run, 2)


def test_every_checked_key_exists():
    (run,) = compose([TINY, "stage=sft"])
    checked = [rules.setting(run, key) for key in (*rules.CHOICES, *rules.AT_LEAST)]
    assert len(checked) == len(rules.CHOICES) + len(rules.AT_LEAST) > 50


@pytest.mark.parametrize("trainable", ["[vision,connector]", "[vision.layers.3.*]", "['*.norm*']"])
def test_features_of_a_trained_encoder_cannot_be_required(trainable):
    told = problems("data.features=require", f"train.trainable={trainable}")
    assert len(told) == 1
    assert "trains the vision encoder, whose features change with every step: use data.features=auto" in told[0]
    assert compose([TINY, "data.features=auto", f"train.trainable={trainable}"])
    assert compose([TINY, "data.features=require", "train.trainable=[connector,'language.*.norm*']"])
