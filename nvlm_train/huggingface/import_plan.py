"""What an import will do, worked out from names and shapes alone; what is wrong with a source is told before it begins."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from nvlm_train.engine.weights_folder import Sizes
from nvlm_train.errors import CheckpointError
from nvlm_train.huggingface.configs import read_config
from nvlm_train.huggingface.entry import Entry
from nvlm_train.huggingface.import_source import Source
from nvlm_train.huggingface.names import language_entries, nvlm_entries, vision_entries
from nvlm_train.huggingface.shard_writer import Planned

_SHOWN = 6          # names of one kind in a message
_TOWERS = ("", "vision_model.", "vision_tower.vision_model.")     # where an encoder's names begin, by who wrote the file

# Tensors that are known and not needed: buffers of old files, and what encoders were trained with.
_CALCULATED = r".*\.inv_freq|.*position_ids"
_BESIDE_ENCODERS = {
    r"text_model\..*|(text|visual)_projection\.weight|logit_(scale|bias)": "the text tower and what joins it",
    r"(vision_model\.|vision_tower\.vision_model\.)?head\..*": "SigLIP's pooling, which makes one vector of a picture",
}


@dataclass(frozen=True)
class ImportPlan:
    """What will be written, and out of what.

    sizes: in our settings. entries: which tensors become which. tensors: as they will be written, in order. left_out: reason ->
    names of the source's tensors that are not needed. dummy_heads: of the source's encoder. repository, licence: where the model
    comes from, None where nobody says.
    """

    source: Source
    sizes: Sizes
    entries: Sequence[Entry]
    tensors: Sequence[Planned]
    left_out: dict[str, list[str]] = field(default_factory=dict)
    dummy_heads: int = 0
    repository: str | None = None
    licence: str | None = None

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        return sum(entry.numel for entry in self.entries)


def plan_import(source: Source, layers: int | None = None, repository: str | None = None,
                licence: str | None = None) -> ImportPlan:
    """layers: how many of an encoder's layers are taken (see `read_vision`). repository, licence: in place of what the source
    says.

    Raises ConfigError for a model that is not implemented, CheckpointError for tensors that are not those of the model: missing
    and strange ones with the nearest names, wrong shapes with both.
    """
    origin = {"repository": repository or source.repository, "licence": licence or source.licence}
    sizes = _with_origin(read_config(source.config, source.preprocessor, layers), **origin)
    dummies = _dummy_heads(source, sizes)
    entries = _entries(source, sizes, dummies)
    used = {name: shape for entry in entries for name, shape in zip(entry.theirs, entry.their_shapes, strict=True)}
    left_out = _left_out(source, sizes, used)
    known = {name for names in left_out.values() for name in names}
    problems = [*_missing(source, used), *_strange(source, used, known), *_misshapen(source, used), *_mixed(source, entries)]
    if problems:
        kind = source.config.get("model_type")
        raise CheckpointError("\n  ".join([f"{source.name} does not hold the {kind} that its config.json describes:", *problems]))
    planned = [Planned(entry.ours, source.dtypes[entry.theirs[0]], entry.shape) for entry in entries]
    return ImportPlan(source, sizes, entries, planned, left_out, dummies, **origin)


def _with_origin(sizes: Sizes, repository: str | None, licence: str | None) -> Sizes:
    """Encoder and language model remember where they come from, for model cards."""
    return replace(sizes, **{name: replace(part, source=repository, licence=licence)
                             for name in ("vision", "language") if (part := getattr(sizes, name))})


def _entries(source: Source, sizes: Sizes, dummies: int) -> list[Entry]:
    if sizes.architecture is not None:
        return list(nvlm_entries(sizes.model(), dummies))
    if sizes.language is not None:
        return list(language_entries(sizes.language))
    return list(vision_entries(sizes.vision, _tower(source), dummies))


def _tower(source: Source) -> str:
    return next((prefix for prefix in _TOWERS if f"{prefix}embeddings.patch_embedding.weight" in source.shapes), "")


def _dummy_heads(source: Source, sizes: Sizes) -> int:
    """Heads of the file's encoder beyond the real ones, by the width of its first layer's [Q; K; V]."""
    vision = sizes.vision
    if vision is None or vision.family != "internvit":
        return 0
    prefix = "vision_model." if sizes.architecture else _tower(source)
    rows = source.shapes.get(f"{prefix}encoder.layers.0.attn.qkv.weight", (0,))[0]
    heads, rest = divmod(rows, 3 * (vision.hidden // vision.heads))
    return heads - vision.heads if heads > vision.heads and not rest else 0


def _left_out(source: Source, sizes: Sizes, used: dict) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in source.shapes:
        reason = None if name in used else _why_unneeded(source, sizes, name)
        if reason is not None:
            found.setdefault(reason, []).append(name)
    return found


def _why_unneeded(source: Source, sizes: Sizes, name: str) -> str | None:
    vision, language = sizes.vision, sizes.language
    if re.fullmatch(_CALCULATED, name):
        return "positions, which are calculated"
    if vision is not None and vision.family == "clip" and "post_layernorm." in name:
        return "CLIP's last norm, which is for its class token"
    if language is not None:
        return _tied(source, name) if language.tie_embeddings and name.endswith("lm_head.weight") else None
    layer = re.search(r"encoder\.layers\.(\d+)\.", name)
    if layer and int(layer[1]) >= vision.layers and not name.startswith("text_model."):
        return f"layers of the encoder behind the {vision.layers} that are taken"
    return next((why for pattern, why in _BESIDE_ENCODERS.items() if re.fullmatch(pattern, name)), None)


def _tied(source: Source, head: str) -> str:
    """An output layer beside tied embeddings says the same twice, or the file contradicts itself. Raises CheckpointError then."""
    embedding = head.removesuffix("lm_head.weight") + "model.embed_tokens.weight"
    if embedding in source.shapes and source.shapes[embedding] == source.shapes[head] \
            and torch.equal(source.tensor(embedding), source.tensor(head)):
        return "the output layer, which is the embedding (tie_word_embeddings)"
    raise CheckpointError(
        f"{source.name}: config.json says tie_word_embeddings=true, so that {head} would be {embedding}, but the two differ: "
        "config.json or a file is wrong. With tie_word_embeddings=false both are imported as they are")


def _missing(source: Source, used: dict) -> Iterator[str]:
    lacking = [name for name in used if name not in source.shapes]
    spare = [name for name in source.shapes if name not in used]
    yield from _listed("missing", lacking, spare)
    if any(name.endswith("lm_head.weight") for name in lacking) and len(lacking) == 1:
        yield "if its output layer is its embedding, config.json has to say tie_word_embeddings=true"


def _strange(source: Source, used: dict, known: set[str]) -> Iterator[str]:
    strange = [name for name in source.shapes if name not in used and name not in known]
    yield from _listed("not part of this model", strange, [name for name in used if name not in source.shapes])


def _listed(title: str, names: Sequence[str], others: Iterable[str]) -> Iterator[str]:
    others = list(others)
    for name in names[:_SHOWN]:
        near = difflib.get_close_matches(name, others, n=1)
        yield f"{title}: {name}" + (f" (nearest: {near[0]})" if near else "")
    if len(names) > _SHOWN:
        yield f"{title}: {len(names) - _SHOWN} more"


def _misshapen(source: Source, used: dict) -> Iterator[str]:
    wrong = [f"{name} has shape {source.shapes[name]}, and by config.json {shape}" for name, shape in used.items()
             if name in source.shapes and source.shapes[name] != shape]
    yield from wrong[:_SHOWN]
    if len(wrong) > _SHOWN:
        yield f"{len(wrong) - _SHOWN} more of another shape"


def _mixed(source: Source, entries: Sequence[Entry]) -> Iterator[str]:
    for entry in entries:
        kinds = {source.dtypes[name] for name in entry.theirs if name in source.dtypes}
        if len(kinds) > 1 or not all(kind.is_floating_point for kind in kinds):
            yield (f"{' and '.join(entry.theirs)} are of {' and '.join(sorted(map(str, kinds)))}: floating-point numbers of one "
                   "kind are read")
