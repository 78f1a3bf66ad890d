"""`nvlm export`: a checkpoint, or imported weights, as a Hugging Face folder. See docs/export.md.

Streamed: tensors are read, converted and written one at a time. A folder is written under another name, and renamed when it is
whole.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from nvlm_train.data.tokenizer import Tokenizer, load_tokenizer
from nvlm_train.engine.folders import sync_file
from nvlm_train.errors import CheckpointError, ConfigError
from nvlm_train.huggingface.export_files import Folder, files_of
from nvlm_train.huggingface.export_source import Source, open_source
from nvlm_train.huggingface.model_card import model_card
from nvlm_train.huggingface.names import Entry, language_entries, nvlm_entries, vision_entries
from nvlm_train.huggingface.new_folder import new_folder, refuse_existing
from nvlm_train.huggingface.progress import progress
from nvlm_train.huggingface.serving import vllm_obstacles
from nvlm_train.huggingface.shard_writer import Planned, ShardWriter

PARTS = ("whole", "language", "vision")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "as-is": None}
DUMMY_HEADS = 7     # of the released NVLM-D-72B, and of vLLM whatever the encoder: 25 heads become 32
_NEEDED = {"whole": {"vision", "connector", "language"}, "language": {"language"}, "vision": {"vision"}}
_PREFIX = {"clip": "vision_model.", "siglip": "vision_model.", "internvit": ""}      # of an encoder alone, as published

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """What is asked.

    checkpoint: run, stage, step, or imported weights. part: default the whole model, or the only component there is. heads:
    padded | stripped; default: padded for NVLM-D with InternViT, as it was released. tokenizer: where the run's file lies now.
    join: tags are tokenised together with what is around them, as vLLM does, instead of one by one as in training.
    """

    checkpoint: str
    to: str
    part: str | None = None
    heads: str | None = None
    dtype: str = "as-is"
    shard_gb: float = 5.0
    tokenizer: str | None = None
    join: bool = False


def export(asked: Export) -> Path:
    """Write the folder `asked.to`. Raises ConfigError, CheckpointError (unfinished, damaged, of another model), TrainingError
    (the disk)."""
    target = Path(asked.to).expanduser()
    refuse_existing(target)
    source = open_source(asked.checkpoint)
    part = asked.part or ("whole" if source.components >= _NEEDED["whole"] else min(source.components))
    _check(asked, source, part)
    tokenizer = None if part == "vision" else open_tokenizer(source, asked.tokenizer)
    heads = dummy_heads(asked, source, part)
    entries = list(entries_of(source, part, heads))
    check_names(source, part, entries)
    planned = [Planned(name, DTYPES[asked.dtype] or source.tensors.dtypes[entry.ours], shape)
               for entry in entries for name, shape in zip(entry.theirs, entry.their_shapes, strict=True)]
    folder = Folder(source, part, tokenizer, heads, planned[0].dtype, asked.join)
    files = files_of(folder) | ({"README.md": model_card(folder, target.name).encode()} if part == "whole" else {})
    size = sum(tensor.size for tensor in planned)
    with new_folder(target, size + sum(map(len, files.values()))) as partial:
        source.tensors.verify(entry.ours for entry in entries)
        for name, content in files.items():
            (partial / name).write_bytes(content)
        with progress(f"exporting to {target}", size) as advance:
            _write_tensors(partial, source, entries, planned, int(asked.shard_gb * 1e9), advance)
        for path in partial.iterdir():
            sync_file(path)
    for obstacle in vllm_obstacles(folder) if part == "whole" else ():
        log.info("vLLM's NVLM_D will not serve it: %s", obstacle)
    return target


def _check(asked: Export, source: Source, part: str) -> None:
    problems = [f"{key}={value} is unknown; it is one of {', '.join(known)}" for key, value, known in (
        ("part", part, PARTS), ("dtype", asked.dtype, DTYPES), ("heads", asked.heads or "padded", ("padded", "stripped")))
        if value not in known]
    if part in PARTS and (lacking := _NEEDED[part] - source.components):
        problems.append(f"part={part} needs {' and '.join(sorted(lacking))}, and {asked.checkpoint} holds only "
                        f"{', '.join(sorted(source.components))}: say part={min(source.components)}")
    if asked.shard_gb <= 0:
        problems.append(f"shard_gb={asked.shard_gb} must be more than 0")
    architecture = source.run.model.architecture
    if asked.join and architecture != "nvlm_d":
        problems.append(f"tags.join=joined is NVLM-D's, this is {architecture}: there a tag's own tokens are bound to its tile")
    if part == "whole":
        problems += unpublished(source.run.model.vision)
    if problems:
        raise ConfigError(problems)


def unpublished(vision) -> list[str]:
    """What the modelling file, which has the published encoders only, does not do."""
    family, found = vision.family, []
    if family == "internvit" and not vision.layer_scale:
        found.append("model.vision.layer_scale=false: published InternViT encoders have LayerScale, and nowhere to say it is off")
    if family == "clip" and vision.final_norm:
        found.append("model.vision.final_norm=true: CLIP's last norm is for its class token, which is not among the features")
    if family == "siglip" and not vision.final_norm:
        found.append("model.vision.final_norm=false: published SigLIP encoders have a last norm")
    return found


def dummy_heads(asked: Export, source: Source, part: str) -> int:
    """Empty heads to be written behind the encoder's own. Raises ConfigError where the layout has none."""
    model = source.run.model
    usual = model.architecture == "nvlm_d" and model.vision.family == "internvit"
    if usual and source.weights:
        usual = source.weights.source.get("dummy_heads", 0) > 0     # as they were before
    if part != "whole" or not (usual if asked.heads is None else asked.heads == "padded"):
        return 0
    if model.vision.family != "internvit":
        raise ConfigError(f"heads=padded is for InternViT encoders, this one is of family {model.vision.family}: leave it out")
    return DUMMY_HEADS


def entries_of(source: Source, part: str, heads: int) -> Iterable[Entry]:
    """The tensors of a part, theirs and ours, layer by layer."""
    model = source.run.model
    if part == "language":
        return language_entries(model.language)
    return vision_entries(model.vision, _PREFIX[model.vision.family]) if part == "vision" else nvlm_entries(model, heads)


def check_names(source: Source, part: str, entries: Iterable[Entry]) -> None:
    """Every tensor has its name: none is lost silently. Raises CheckpointError. Of a part alone, others may be there."""
    wanted, held = {entry.ours for entry in entries}, set(source.tensors.dtypes)
    strange = held - wanted if part == "whole" else ()
    for title, names in (("lacks", wanted - held), ("holds, and no Hugging Face layout has a name for,", strange)):
        if names:
            raise CheckpointError(f"{source.folder} {title} {len(names)} tensors, such as {min(names)}")


def open_tokenizer(source: Source, path: str | None) -> Tokenizer:
    """The tokenizer that the model was trained with. Raises ConfigError for another one, DataError if it is not there."""
    template = source.run.data.template if source.manifest else None     # of imported weights: by the tokens that it has
    tokenizer = load_tokenizer(path or source.run.model.tokenizer, template)
    trained = source.tokenizer_sha256 or tokenizer.fingerprint
    if tokenizer.fingerprint != trained:
        raise ConfigError(f"tokenizer {tokenizer.name} is not the one of the checkpoint: SHA-256 {tokenizer.fingerprint} here, "
                          f"{trained} there. Name the right file by tokenizer=FILE")
    return tokenizer


def _write_tensors(folder: Path, source: Source, entries: list[Entry], planned: list[Planned], limit: int,
                   advance: Callable[[int], None]) -> None:
    by_name = {tensor.name: tensor for tensor in planned}
    with ShardWriter(folder, planned, limit) as writer:
        for entry in entries:
            parts = entry.split(source.tensors.tensor(entry.ours, entry.shape))
            for name, part in zip(entry.theirs, parts, strict=True):
                writer.write(name, part.to(by_name[name].dtype))
                advance(by_name[name].size)
