"""The tables of docs/recipes.md and docs/backbones.md, made of the recipes; `test_recipe_docs` compares them, and writes them."""

from collections.abc import Callable, Iterable
from dataclasses import asdict

from nvlm_train.config.compose import compose
from nvlm_train.config.schema import Run
from nvlm_train.geometry import geometry_of
from nvlm_train.model.accounting import parameters

# In the order of the paper's tables: their words, our setting.
PAPER_ROWS = (
    ("global batch", "train.global_batch"), ("max learning rate", "train.lr"), ("min learning rate", "train.min_lr"),
    ("warm-up steps", "train.warmup_steps"), ("schedule", "train.schedule"), ("AdamW beta 1", "train.beta1"),
    ("AdamW beta 2", "train.beta2"), ("weight decay", "train.weight_decay"), ("gradient clipping", "train.clip_grad"),
    ("sequence length of the LLM", "data.max_tokens"), ("tiles", "data.max_tiles"), ("tensor parallel", "layout.tensor"),
    ("pipeline parallel", "layout.pipeline"), ("training steps", "train.steps"), ("trained (section 4.5)", "train.trainable"),
)
SCRIPT_ROWS = (
    ("global batch", "train.global_batch"), ("steps", "train.steps"), ("rate at its floor from step", "train.decay_steps"),
    ("warm-up steps", "train.warmup_steps"), ("AdamW beta 2", "train.beta2"), ("pipeline parallel", "layout.pipeline"),
    ("form of a sample", "data.format"), ("system prompt", "data.system_prompt"),
)
SCRIPTS = {
    "72b": ("recipe=nvlm_d_72b", "method=nvlm_d_scripts"),
    "34b": ("recipe=nvlm_d_34b", "method=nvlm_d_scripts_34b", "layout.pipeline=1", "layout.first_stage_layers=null"),
}
OPEN_ROWS = (("tokens of a row", "data.pack_tokens"), ("tiles of a row", "data.pack_tiles"),
             ("what is computed again", "model.recompute"), ("AdamW epsilon", "train.eps"),
             ("layers beside the encoder", "layout.first_stage_layers"))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def shown(value) -> str:
    """A value as people write it."""
    if isinstance(value, (tuple, list)):
        return ", ".join(value)
    if value is None:
        return "none"
    if isinstance(value, float):
        if value and abs(value) < 1e-2:
            digits, power = f"{value:e}".split("e")
            return f"{float(digits):g}e{int(power)}"
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) and value >= 1000 and not isinstance(value, bool) else str(value)


def of(run: Run, key: str) -> str:
    value = asdict(run)
    for part in key.split("."):
        value = value[part]
    if key == "data.max_tiles":
        return f"{value} + thumbnail" if value > 1 and run.data.thumbnail else str(value)
    if key == "train.decay_steps" and value is None:
        return "the last"
    if key == "layout.first_stage_layers" and value is None:
        return "all" if run.layout.pipeline == 1 else "an even share"
    return shown(value)


def both_sizes(model: str, stage: str, key: str) -> str:
    """The 72B's value, and the 34B's where it is another."""
    large, small = (of(compose([f"recipe=nvlm_{model}_{size}", f"stage={stage}"])[0], key) for size in ("72b", "34b"))
    return large if large == small else f"{large} (34B: {small})"


def paper(stage: str, rows=PAPER_ROWS) -> str:
    return table(("", "setting", "NVLM-D", "NVLM-X", "NVLM-H"),
                 ((words, f"`{key}`", *(both_sizes(model, stage, key) for model in "dxh")) for words, key in rows))


def scripts(stage: str) -> str:
    runs = [compose([*words, f"stage={stage}"])[0] for words in (("recipe=nvlm_d_72b",), SCRIPTS["72b"], SCRIPTS["34b"])]
    return table(("", "setting", "paper (72B)", "script, 72B", "script, 34B"),
                 ((words, f"`{key}`", *(of(run, key) for run in runs)) for words, key in SCRIPT_ROWS))


def languages(names: Iterable[str]) -> str:
    def row(name: str) -> tuple[str, ...]:
        (run,) = compose(["recipe=nvlm_d_2b", "stage=sft", f"language={name}"])
        m = run.model.language
        return (f"`{name}`", f"[{m.source}](https://huggingface.co/{m.source})", f"{parameters(run.model).language:,}",
                f"{m.layers} x {m.hidden:,}", f"{m.heads} / {m.kv_heads}", f"{m.ffn:,}", f"{m.vocab:,}",
                "yes" if m.tie_embeddings else "no", run.data.template, m.licence)
    head = ("`language=`", "published as", "parameters", "layers x width", "heads / kv", "ffn", "vocabulary", "tied", "template",
            "licence")
    return table(head, map(row, names))


def visions(names: Iterable[str]) -> str:
    def row(name: str) -> tuple[str, ...]:
        (run,) = compose(["recipe=nvlm_d_2b", "stage=sft", f"vision={name}"])
        v, geometry = run.model.vision, geometry_of(run.model)
        return (f"`{name}`", f"[{v.source}](https://huggingface.co/{v.source})", f"{parameters(run.model).vision:,}",
                f"{v.layers} x {v.hidden:,}", str(v.heads), f"{v.ffn:,}", f"{v.tile_size} px",
                f"{geometry.grid} x {geometry.grid}", f"{geometry.shuffle} x {geometry.shuffle}", str(geometry.tokens), v.licence)
    head = ("`vision=`", "published as", "parameters", "layers x width", "heads", "ffn", "tile", "patches", "pixel shuffle",
            "tokens a tile", "licence")
    return table(head, map(row, names))


def by_size(group: str, names: Iterable[str]) -> list[str]:
    """Entries by series (Qwen2.5, SmolLM2, …), then size."""
    def place(name: str) -> tuple[str, int]:
        (run,) = compose(["recipe=nvlm_d_2b", "stage=sft", f"{group}={name}"])
        return getattr(run.model, group).source.split("/")[1].split("-")[0].lower(), getattr(parameters(run.model), group)
    return sorted(names, key=place)


def tables(published: dict[str, set[str]]) -> dict[str, dict[str, Callable[[], str]]]:
    """File -> name of a table -> what makes it. published: the entries of each group that have a source."""
    return {
        "recipes.md": {"pretrain": lambda: paper("pretrain"), "sft": lambda: paper("sft"),
                       "open": lambda: paper("sft", OPEN_ROWS),
                       "scripts-pretrain": lambda: scripts("pretrain"), "scripts-sft": lambda: scripts("sft")},
        "backbones.md": {"language": lambda: languages(by_size("language", published["language"])),
                         "vision": lambda: visions(by_size("vision", published["vision"]))},
    }
