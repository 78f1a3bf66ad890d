"""The model card (README.md) of an exported model: what the checkpoint and its run directory say, and nothing else."""

from collections.abc import Iterable, Mapping
from typing import Any

from nvlm_train import __version__
from nvlm_train.config.dump import runs_from_file
from nvlm_train.config.schema import Run
from nvlm_train.engine.weights_folder import WeightsFolder, is_weights_folder
from nvlm_train.errors import ConfigError
from nvlm_train.huggingface.export_files import Folder
from nvlm_train.model.accounting import parameters
from nvlm_train.training.logs import EVAL, METRICS, read_rows

_NAMES = {"nvlm_d": "NVLM-D", "nvlm_x": "NVLM-X", "nvlm_h": "NVLM-H"}
_STAGES = {"pretrain": "pretraining", "sft": "supervised finetuning"}
UNKNOWN = "unknown"


def model_card(folder: Folder, name: str) -> str:
    """README.md of a whole model, front matter included."""
    run = folder.source.run
    parts = [
        _front_matter(folder), f"# {name}", _introduction(folder), _base_models(folder), _licence_note(folder),
        _training(folder), _data(folder), _results(folder), _use(folder), _versions(folder),
    ]
    assert run.model.architecture in _NAMES
    return "\n\n".join(part for part in parts if part) + "\n"


def bases(folder: Folder) -> dict[str, tuple[str, str]]:
    """What the model was made from -> (where it was published, its licence); `unknown` where nobody says. Imported weights,
    if they are still there, know better than the settings."""
    if folder.source.weights:
        told = folder.source.weights.source
        return {"whole model": _origin(told.get("repository"), told.get("licence"))}
    model, found = folder.source.run.model, {}
    for part, settings in (("language model", model.language), ("vision encoder", model.vision), ("projector", model.connector)):
        if settings.weights and is_weights_folder(settings.weights):
            source = WeightsFolder.read(settings.weights).source
            found[part] = _origin(source.get("repository") or getattr(settings, "source", None),
                                  source.get("licence") or getattr(settings, "licence", None))
        elif part != "projector":
            found[part] = _origin(settings.source, settings.licence)
    return found


def _origin(source: str | None, licence: str | None) -> tuple[str, str]:
    return source or UNKNOWN, licence or UNKNOWN


def licence(folder: Folder) -> str:
    """The card's licence field: one that forbids commercial use if there is one among the bases', the only one if all agree, else
    `other`, or `unknown` where one of them is."""
    licences = {licence.lower() for _, licence in bases(folder).values() if licence != UNKNOWN}
    if restricted := sorted(filter(non_commercial, licences)):
        return restricted[0]
    if UNKNOWN in {licence for _, licence in bases(folder).values()}:
        return UNKNOWN
    return licences.pop() if len(licences) == 1 else "other"


def non_commercial(licence: str) -> bool:
    """Whether a licence, by its name on Hugging Face, forbids commercial use."""
    return "-nc" in licence or licence == "qwen-research"


def _front_matter(folder: Folder) -> str:
    sources = [source for source, _ in bases(folder).values() if source != UNKNOWN]
    named = ["base_model:", *(f"- {source}" for source in dict.fromkeys(sources))] if sources else []
    lines = [f"license: {licence(folder)}", *named,
             "library_name: transformers", "pipeline_tag: image-text-to-text", "tags:", "- nvlm", "- nvlm_train"]
    return "\n".join(["---", *lines, "---"])


def _introduction(folder: Folder) -> str:
    model = folder.source.run.model
    count = parameters(model)
    cross = f", gated cross-attention {count.cross_attention:,}" if count.cross_attention else ""
    return (f"{_NAMES[model.architecture]} (arXiv 2409.11402) with {count.total:,} parameters: vision encoder {count.vision:,}, "
            f"projector {count.connector:,}, language model {count.language:,}{cross}. "
            "Trained with nvlm_train; not one of NVIDIA's own models.")


def _base_models(folder: Folder) -> str:
    rows = [(part, *facts) for part, facts in bases(folder).items()]
    return "## Base models\n\n" + _table(("part", "published as", "licence"), rows)


def _licence_note(folder: Folder) -> str:
    chosen = licence(folder)
    if non_commercial(chosen):
        return f"A base model's licence, {chosen}, forbids commercial use, and so does this model's."
    if chosen == UNKNOWN:
        return "The licence of a base model is not known here. Find it out before you pass this model on."
    return "" if chosen != "other" else "The licences of all base models apply together."


def _stages(folder: Folder) -> list[Run]:
    """The stages that led to the checkpoint, as the run directory has them; else the checkpoint's own."""
    run = folder.source.run
    if folder.source.run_dir is None:
        return [run]
    try:
        earlier = runs_from_file(folder.source.run_dir / "config.yaml")
    except ConfigError:
        return [run]
    return [*(other for other in earlier if other.stage == "pretrain" != run.stage), run]


def _training(folder: Folder) -> str:
    manifest = folder.source.manifest
    if manifest is None:
        return "## Training\n\nNot trained here: imported weights."
    stages = _stages(folder)
    rows = [(title, *(row(run) for run in stages)) for title, row in _HYPERPARAMETERS]
    rows += _amounts(folder, stages)
    done = f"{manifest.step:,} of {folder.source.run.train.steps:,} steps of {_STAGES[manifest.stage]} are done."
    alone = "" if len(stages) > 1 or manifest.stage == "pretrain" else " What came before is not recorded with the checkpoint."
    return f"## Training\n\n{done}{alone}\n\n" + _table(("", *(_STAGES[run.stage] for run in stages)), rows)


_HYPERPARAMETERS = (
    ("recipe", lambda run: run.recipe), ("trained", lambda run: ", ".join(run.train.trainable)),
    ("steps", lambda run: f"{run.train.steps:,}"), ("samples a step", lambda run: f"{run.train.global_batch:,}"),
    ("learning rate", lambda run: f"{run.train.lr:g} to {run.train.min_lr:g}, {run.train.schedule}"),
    ("warm-up steps", lambda run: f"{run.train.warmup_steps:,}"),
    ("Adam", lambda run: f"betas {run.train.beta1:g}, {run.train.beta2:g}, weight decay {run.train.weight_decay:g}"),
    ("gradient norm cut at", lambda run: f"{run.train.clip_grad:g}" if run.train.clip_grad else "no"),
    ("tokens of a sample", lambda run: f"up to {run.data.max_tokens:,}"),
    ("tiles of a picture", lambda run: f"up to {run.data.max_tiles}" + (
        " and a thumbnail" if run.data.thumbnail and run.data.max_tiles > 1 else "")),
    ("tile tags", lambda run: run.model.tags.kind),
    ("layout", lambda run: f"tensor {run.layout.tensor}, pipeline {run.layout.pipeline}" + (
        f", context {run.layout.context}" if run.layout.context > 1 else "") + f", {run.engine.name}"),
)


def _amounts(folder: Folder, stages: list[Run]) -> list[tuple[str, ...]]:
    """Samples and tokens by the log of the steps up to the checkpoint, where the run directory is at hand."""
    if folder.source.run_dir is None:
        return []
    own, step = folder.source.run.stage, folder.source.manifest.step
    rows = [row for row in read_rows(folder.source.run_dir / METRICS)
            if row.get("stage") != own or row.get("step", 0) <= step]
    return [(f"{kind} trained on", *(f"{sum(row.get(kind) or 0 for row in rows if row.get('stage') == run.stage):,}"
                                     for run in stages)) for kind in ("samples", "tokens")]


def _data(folder: Folder) -> str:
    if folder.source.manifest is None:
        return ""
    rows = []
    for run in _stages(folder):
        whole = sum(source.weight for source in run.data.blend.values()) or 1
        rows += [(_STAGES[run.stage], name, f"{source.weight:g}", f"{source.weight / whole:.1%}",
                  f"{source.epochs:g}" if source.epochs else "as often as needed") for name, source in run.data.blend.items()]
    if not rows:
        return "## Data\n\nThe blend is not recorded with the checkpoint."
    return "## Data\n\n" + _table(("stage", "source", "weight", f"share of {folder.source.run.data.weigh_by}", "epochs"), rows)


def _results(folder: Folder) -> str:
    """The last validation loss and scores at or before the checkpoint."""
    where = folder.source
    if where.run_dir is None:
        return ""
    losses, scores = {}, {}
    for row in read_rows(where.run_dir / EVAL):
        stage = str(row.get("stage", "")).partition(" ")[0]
        if stage != where.run.stage or row.get("step", 0) > where.manifest.step:
            continue
        if row.get("kind") == "score":
            scores[row.get("task")] = (row["step"], row.get("scores") or {})
        elif "loss" in row:
            losses = row
    lines = [f"Validation loss after step {losses['step']:,}: {losses['loss']:.4f}."] if losses.get("loss") is not None else []
    table = [(task, f"{step:,}", _percent(score.get("accuracy")), score.get("questions", UNKNOWN))
             for task, (step, score) in scores.items()]
    if table:
        lines.append(_table(("task", "step", "accuracy", "questions"), table))
    return "## Results\n\n" + "\n\n".join(lines) if lines else ""


def _percent(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, (int, float)) else UNKNOWN


def _use(folder: Folder) -> str:
    return """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=True)
print(model.chat(tokenizer, ["picture.png"], "What is in the picture?"))
print(model.chat(tokenizer, [], "A question without a picture."))
```

The Python files of this folder need torch, transformers 5 and Pillow. They run only with `trust_remote_code=True`; read them
first."""


def _versions(folder: Folder) -> str:
    manifest = folder.source.manifest
    written = {**(manifest.versions if manifest else {}), "exported by nvlm_train": __version__}
    rows: Iterable[tuple] = written.items()
    at: Mapping[str, Any] = {"save": manifest.save_id, "stage": manifest.stage, "step": manifest.step} if manifest else {}
    return "## Versions\n\n" + _table(("", ""), [*rows, *at.items()])


def _table(head: tuple, rows: Iterable[tuple]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
