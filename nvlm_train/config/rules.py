"""Rules that join several settings. Each is a small pure function over one run; all are run and reported together.

A rule yields one sentence for each thing that is wrong: the settings by name, both numbers, and what to do.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from nvlm_train.config.context_rules import CONTEXT_RULES
from nvlm_train.config.cross_rules import CROSS_RULES
from nvlm_train.config.engine_rules import ENGINE_RULES
from nvlm_train.config.evaluate_rules import EVALUATE_RULES
from nvlm_train.config.kernel_rules import KERNEL_RULES
from nvlm_train.config.layers import may_train
from nvlm_train.config.moment_rules import MOMENT_RULES
from nvlm_train.config.profile_rules import PROFILE_RULES
from nvlm_train.config.recompute import RECOMPUTE_RULES
from nvlm_train.config.schema import Run, Source
from nvlm_train.config.split import encoder_tensor
from nvlm_train.config.typed import suggestion
from nvlm_train.errors import ConfigError
from nvlm_train.geometry import TileGeometry, geometry_of, with_thumbnail

Rule = Callable[[Run], Iterator[str]]

COMPONENTS = ("vision", "connector", "language", "cross_attention")    # the last: X and H; a part of language too
PATTERN_SIGNS = set(".*?[]")        # a name with one of these is a pattern of parameter names, not a component

CHOICES = {
    "stage": ("pretrain", "sft"),
    "engine.name": ("megatron", "deepspeed"),
    "engine.zero": (1, 2, 3),
    "engine.offload": ("none", "optimizer"),
    "model.architecture": ("nvlm_d", "nvlm_x", "nvlm_h"),
    "model.dtype": ("auto", "bf16", "fp32"),
    "model.recompute": ("none", "selective", "full"),
    "model.kernels": ("auto", "torch", "te", "apex"),
    "model.compile": ("auto", "on", "off"),
    "model.fp8": ("none", "current", "delayed", "mxfp8"),
    "model.fp8_layers": ("auto", "mlp", "all"),
    "model.vision.family": ("internvit", "clip", "siglip"),
    "model.vision.norm": ("rms", "layer"),
    "model.vision.activation": ("gelu", "quick_gelu", "gelu_tanh"),
    "model.language.family": ("llama", "qwen2"),
    "model.connector.layers": (1, 2),
    "model.tags.kind": ("none", "1d", "2d_grid", "2d_bbox"),
    "train.optimizer_state": ("fp32", "bf16"),
    "train.schedule": ("cosine", "constant"),
    "data.format": ("pretrain", "chat"),
    "data.template": ("chatml", "llama3"),
    "data.weigh_by": ("samples", "tokens"),
    "data.features": ("auto", "off", "require"),
    "run.view": ("auto", "live", "line", "plain"),
    "run.wandb": ("off", "offline", "online"),
    "run.device": ("auto", "cpu", "cuda"),
}

AT_LEAST = {
    **dict.fromkeys((
        "model.vision.layers", "model.vision.hidden", "model.vision.heads", "model.vision.ffn",
        "model.vision.tile_size", "model.vision.patch", "model.connector.shuffle",
        "model.connector.resampler_layers", "model.cross_attention.every", "model.cross_attention.heads",
        "model.cross_attention.kv_heads", "model.tags.max_tokens",
        "model.language.layers", "model.language.hidden", "model.language.heads", "model.language.kv_heads",
        "model.language.head_dim", "model.language.ffn", "model.language.vocab",
        "train.steps", "train.global_batch", "train.max_bad_steps", "train.decay_steps",
        "data.max_tokens", "data.pack_tokens", "data.max_tiles", "data.pack_tiles", "data.prefetch",
        "layout.tensor", "layout.pipeline", "layout.virtual", "layout.context",
        "run.keep_last", "run.log_every", "run.eval_batches", "run.timeout_s", "evaluate.max_new_tokens",
    ), 1),
    **dict.fromkeys((
        "train.lr", "train.min_lr", "train.warmup_steps", "train.weight_decay", "train.clip_grad", "train.seed",
        "data.workers", "data.max_refused", "data.shuffle_window", "data.cache_gb", "layout.first_stage_layers",
        "run.save_every", "run.eval_every", "run.examples", "run.examples_every", "run.hang_s", "run.max_restarts", "model.init_std",
        "model.connector.resampler_tokens", "model.cross_attention.ffn", "evaluate.every", "evaluate.limit", "evaluate.examples",
        "guard.margin",
    ), 0),
}


def check(runs: Sequence[Run]) -> None:
    """Raise ConfigError with every problem of every stage, each told once."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for problem in problems(run):
            found.setdefault(problem, []).append(run.stage)
    told = by_stage(found, [run.stage for run in runs]) + list(between_stages(runs))
    if told:
        raise ConfigError(told)


def problems(run: Run) -> list[str]:
    """Everything wrong with one run. Rules that calculate are left out while a size is zero or negative."""
    found = list(amounts(run))
    rules = [rule for rule in RULES if rule is not amounts] if not found else [choices]
    return found + [problem for rule in rules for problem in rule(run)]


def notes(run: Run) -> list[str]:
    """What is allowed and yet probably not what was meant."""
    found = []
    if run.layout.sequence and run.layout.tensor == 1:
        found.append("layout.sequence has no effect while layout.tensor is 1")
    if run.model.tags.kind == "none" and run.data.max_tiles > 1:
        found.append(f"model.tags.kind=none with data.max_tiles={run.data.max_tiles}: the model is not told which tile is which")
    context, tokens = run.layout.context, run.data.pack_tokens
    if context > 1 and run.data.max_tokens <= tokens // context:
        found.append(f"layout.context={context} shares out rows of data.pack_tokens={tokens}, and no sample is longer than "
                     f"data.max_tokens={run.data.max_tokens}: rows of {tokens // context} without it learn the same and need no messages")
    if run.run.hang_s >= run.run.timeout_s:
        found.append(f"run.hang_s={run.run.hang_s} is not less than run.timeout_s={run.run.timeout_s}: a collective that hangs times out "
                     "before the rank that holds it up is looked for")
    if run.model.fp8 == "delayed":
        found.append("model.fp8=delayed: a checkpoint does not hold the scales, so the steps after a resume measure them anew "
                     "and its curve is not bit for bit the undisturbed one; model.fp8=current has no such state")
    return found


def by_stage(found: dict[str, list[str]], stages: Sequence[str]) -> list[str]:
    """Problem -> stages that have it, as sentences; those of one stage among several name it."""
    return [text if len(names) == len(stages) else f"{text} (stage {', '.join(names)})" for text, names in found.items()]


def check_world(run: Run, world_size: int) -> int:
    """The data-parallel size on `world_size` processes. Raises ConfigError when the layout does not fit them."""
    layout = run.layout
    model_parallel = layout.tensor * layout.pipeline * layout.context
    if world_size % model_parallel:
        raise ConfigError(
            f"{world_size} processes cannot be split into groups of {model_parallel} (layout.tensor={layout.tensor} x "
            f"layout.pipeline={layout.pipeline} x layout.context={layout.context}): start a multiple of {model_parallel} "
            "processes or choose a smaller layout")
    return world_size // model_parallel


def choices(run: Run) -> Iterator[str]:
    for key, allowed in CHOICES.items():
        value = setting(run, key)
        if value not in allowed:
            near = suggestion(value, [str(word) for word in allowed]) if isinstance(value, str) else ""
            yield f"{key}: {value!r} is none of {', '.join(map(str, allowed))}{near}"


def amounts(run: Run) -> Iterator[str]:
    for key, least in AT_LEAST.items():
        value = setting(run, key)
        if value is not None and value < least:
            yield f"{key}={value} must be at least {least}"
    if not 0 <= run.train.beta1 < 1 or not 0 <= run.train.beta2 < 1:
        yield f"train.beta1={run.train.beta1} and train.beta2={run.train.beta2} must lie in [0, 1)"
    if run.train.eps <= 0:
        yield f"train.eps={run.train.eps} must be greater than 0"


def learning_rate(run: Run) -> Iterator[str]:
    train = run.train
    if train.min_lr > train.lr:
        yield f"train.min_lr={train.min_lr} is above train.lr={train.lr}: the schedule falls to min_lr; lower that too"
    if train.warmup_steps >= train.steps:
        yield f"train.warmup_steps={train.warmup_steps} must be less than train.steps={train.steps}: lr would never be reached"
    if train.decay_steps is not None and train.warmup_steps >= train.decay_steps:
        yield (f"train.warmup_steps={train.warmup_steps} must be less than train.decay_steps={train.decay_steps}: "
               "the rate falls between the two")


def trained_parts(run: Run) -> Iterator[str]:
    known = [name for name in COMPONENTS if name != "cross_attention" or run.model.architecture != "nvlm_d"]
    if not run.train.trainable:
        yield f"train.trainable is empty: name what learns, out of {', '.join(known)}"
    for key, names in (("train.trainable", run.train.trainable), ("train.lr_multipliers", run.train.lr_multipliers)):
        for name in names:
            if name not in COMPONENTS and not PATTERN_SIGNS & set(name):
                yield (f"{key}: {name!r} is no component ({', '.join(known)}) and no pattern of parameter names "
                       f"such as 'language.*.norm*'{suggestion(name, known)}")
    for name, factor in run.train.lr_multipliers.items():
        if factor < 0:
            yield f"train.lr_multipliers.{name}={factor} must be at least 0"


def cached_features(run: Run) -> Iterator[str]:
    """What an encoder made of a tile is worth keeping only while the encoder stays as it is."""
    if run.data.features == "require" and may_train(run.train.trainable, "vision"):
        yield (f"data.features=require, but train.trainable={list(run.train.trainable)} trains the vision encoder, whose "
               "features change with every step: use data.features=auto, or leave vision out of train.trainable")


def tile_geometry(run: Run) -> Iterator[str]:
    yield from (f"model.vision: {problem}" for problem in geometry(run).problems())


def model_shapes(run: Run) -> Iterator[str]:
    vision, language = run.model.vision, run.model.language
    if vision.hidden % vision.heads:
        yield f"model.vision.heads={vision.heads} must divide model.vision.hidden={vision.hidden}"
    if language.heads % language.kv_heads:
        yield f"model.language.kv_heads={language.kv_heads} must divide model.language.heads={language.heads}"
    if language.head_dim % 2:
        yield f"model.language.head_dim={language.head_dim} must be even: rotary positions turn pairs of channels"


def vision_colours(run: Run) -> Iterator[str]:
    """Three each, counted from 0 to 1: some places publish them for 0 to 255."""
    for name in ("mean", "std"):
        values = getattr(run.model.vision, name)
        if len(values) != 3:
            yield f"model.vision.{name}={list(values)} has {len(values)} numbers: give 3, for red, green and blue"
        elif not all(0 < value <= 1 for value in values):
            yield (f"model.vision.{name}={list(values)} must lie above 0 and at most at 1: colours count from 0 to 1 here, divide "
                   "numbers for 0 to 255 by 255")


def token_budgets(run: Run) -> Iterator[str]:
    data, tile_tokens = run.data, geometry(run).tokens
    if data.max_tokens > data.pack_tokens:
        yield (f"data.max_tokens={data.max_tokens} is more than data.pack_tokens={data.pack_tokens}: "
               "a sample must fit into one row")
    # A longer image gets fewer tiles; one tile and a word is the least. X has no tile in the sequence, H its thumbnail.
    if run.model.architecture != "nvlm_x" and tile_tokens >= data.max_tokens:
        yield (f"data.max_tokens={data.max_tokens} leaves no room for text beside one tile of {tile_tokens} tokens: "
               "raise it or use smaller tiles")


def tile_budgets(run: Run) -> Iterator[str]:
    data = run.data
    tiles = with_thumbnail(data.max_tiles, data.thumbnail)
    if tiles > data.pack_tiles:
        memory = "" if run.model.architecture == "nvlm_d" else " and its cross-attention memory"
        yield (f"one image may have {tiles} tiles (data.max_tiles={data.max_tiles}"
               f"{' and a thumbnail' if tiles > data.max_tiles else ''}), but data.pack_tiles={data.pack_tiles}: "
               f"an image must fit into one row{memory}; raise data.pack_tiles")


def blend(run: Run) -> Iterator[str]:
    if not run.data.blend:
        yield "data.blend is empty: name at least one source, data.blend.NAME.path=FOLDER"
    for key, sources in (("blend", run.data.blend), ("validation", run.data.validation)):
        for name, source in sources.items():
            yield from _source(f"data.{key}.{name}", source)


def _source(key: str, source: Source) -> Iterator[str]:
    if not source.path:
        yield f"{key}.path is empty: name the folder of its shards"
    if source.weight <= 0:
        yield f"{key}.weight={source.weight} must be greater than 0; leave a source out with ~{key}"
    if source.epochs is not None and source.epochs <= 0:
        yield f"{key}.epochs={source.epochs} must be greater than 0; null means without end"


def tensor_layout(run: Run) -> Iterator[str]:
    tensor, language = run.layout.tensor, run.model.language
    # Absent on purpose, since they are padded: the vision encoder's heads (25 of InternViT-6B divide by nothing), the vocabulary.
    for name in ("heads", "kv_heads", "ffn"):
        if (size := getattr(language, name)) % tensor:
            yield f"layout.tensor={tensor} must divide model.language.{name}={size}"
    if (size := run.model.vision.ffn) % encoder_tensor(run.layout):
        yield (f"layout.tensor={tensor} must divide model.vision.ffn={size}"
               + ("" if may_train(run.train.trainable, "vision") else "; or set layout.share_tiles=true, which leaves the encoder whole"))
    if (size := run.model.connector.hidden or 0) % tensor:
        yield f"layout.tensor={tensor} must divide model.connector.hidden={size}"
    if run.layout.sequence and tensor > 1 and run.data.pack_tokens % tensor:
        yield (f"layout.sequence splits a row over layout.tensor={tensor} ranks, "
               f"which must divide data.pack_tokens={run.data.pack_tokens}")


def shared_tiles(run: Run) -> Iterator[str]:
    """Ranks that see different tiles would each have a gradient of their own for the whole encoder."""
    if run.layout.share_tiles and may_train(run.train.trainable, "vision"):
        yield (f"layout.share_tiles=true needs a frozen vision encoder, and train.trainable={list(run.train.trainable)} trains it: "
               "use layout.share_tiles=false, which splits the encoder's weights over layout.tensor ranks, or leave vision out of "
               "train.trainable")


def pipeline_layout(run: Run) -> Iterator[str]:
    layout, layers = run.layout, run.model.language.layers
    if run.model.language.tie_embeddings and layout.pipeline > 1:
        yield (f"model.language.tie_embeddings needs layout.pipeline=1 in this version, it is {layout.pipeline}: "
               "embedding and output layer would lie on different stages. Use layout.tensor, or train them apart, starting equal: "
               "model.language.tie_embeddings=false")
    if layout.virtual > 1 and layout.pipeline == 1:
        yield f"layout.virtual={layout.virtual} needs layout.pipeline > 1: it interleaves the stages of a pipeline"
        return
    if layout.first_stage_layers is None:
        chunks = layout.pipeline * layout.virtual
        if layers % chunks:
            yield (f"model.language.layers={layers} cannot be split evenly over {chunks} pieces (layout.pipeline="
                   f"{layout.pipeline} x layout.virtual={layout.virtual}); set layout.first_stage_layers or another split")
        return
    yield from _uneven_pipeline(layout.first_stage_layers, layers, layout.pipeline, layout.virtual)


def _uneven_pipeline(first: int, layers: int, stages: int, virtual: int) -> Iterator[str]:
    if stages == 1:
        yield f"layout.first_stage_layers={first} needs layout.pipeline > 1; with one stage it holds all {layers} layers"
    elif first < 1:
        yield f"layout.first_stage_layers={first}: Megatron-Core wants at least one decoder layer on the first stage"
    elif first >= layers:
        yield f"layout.first_stage_layers={first} leaves none of model.language.layers={layers} to the other stages"
    elif (layers - first) % (stages - 1):
        yield (f"the {layers - first} layers after layout.first_stage_layers={first} cannot be split evenly over the other "
               f"{stages - 1} stages")
    elif first % virtual or (layers - first) // (stages - 1) % virtual:
        yield (f"layout.virtual={virtual} must divide the layers of every stage: {first} on the first, "
               f"{(layers - first) // (stages - 1)} on each other")


def run_directory(run: Run) -> Iterator[str]:
    if not run.run.dir:
        yield "run.dir is empty: name the folder to write to"
    elif run.run.dir.startswith("~"):
        yield f"run.dir={run.run.dir} starts with ~, which the shell did not expand here; write the full path"


def between_stages(runs: Sequence[Run]) -> Iterator[str]:
    """Finetuning starts from what pretraining made, so both are the same model."""
    for run in runs[1:]:
        first = runs[0]
        for part in ("vision", "connector", "cross_attention", "language"):
            for field in fields(getattr(run.model, part)):
                if f"{part}.{field.name}" == "cross_attention.tag_mask":    # who reads what is data's, like the tags themselves
                    continue
                before, after = (getattr(getattr(r.model, part), field.name) for r in (first, run))
                if before != after:
                    yield (f"model.{part}.{field.name} is {before} in {first.stage} and {after} in {run.stage}: "
                           "stages of one run share one model")
        if first.model.tokenizer != run.model.tokenizer:
            yield (f"model.tokenizer is {first.model.tokenizer} in {first.stage} and {run.model.tokenizer} in {run.stage}: "
                   "stages of one run share one tokenizer")


def geometry(run: Run) -> TileGeometry:
    """The tile geometry of a run's model."""
    return geometry_of(run.model)


def setting(run: Run, key: str) -> Any:
    """The value at a dotted key."""
    value: Any = run
    for part in key.split("."):
        value = getattr(value, part)
    return value


RULES: tuple[Rule, ...] = (
    amounts, choices, model_shapes, vision_colours, tile_geometry, trained_parts, cached_features, learning_rate, token_budgets,
    tile_budgets, blend, tensor_layout, shared_tiles, pipeline_layout, run_directory, *CONTEXT_RULES, *CROSS_RULES, *ENGINE_RULES,
    *KERNEL_RULES, *EVALUATE_RULES, *PROFILE_RULES, *RECOMPUTE_RULES, *MOMENT_RULES,
)
