"""Rules of NVLM-X and NVLM-H: where cross-attention stands, its shape, and whether its tiles can be told apart (see `rules`)."""

from collections import Counter
from collections.abc import Iterator

from nvlm_train.config.layers import cross_layers
from nvlm_train.config.schema import Run


def cross_attention_layers(run: Run) -> Iterator[str]:
    """There is at least one, each exists, and none is named twice."""
    cross, count = run.model.cross_attention, run.model.language.layers
    if not has_cross_attention(run):
        return
    if cross.layers is None:
        if not cross_layers(run.model):
            yield (f"model.cross_attention.every={cross.every} is more than model.language.layers={count}: "
                   f"{run.model.architecture} would have no cross-attention; use at most {count}")
        return
    if not cross.layers:
        yield (f"model.cross_attention.layers is empty: {run.model.architecture} would have no cross-attention; "
               f"name layers from 0 to {count - 1}, or set it to null and use model.cross_attention.every")
    outside = sorted({layer for layer in cross.layers if not 0 <= layer < count})
    if outside:
        yield (f"model.cross_attention.layers names {_listed(outside)}, but model.language.layers={count} are counted from 0 to "
               f"{count - 1}: leave out what is not among them")
    twice = sorted(layer for layer, times in Counter(cross.layers).items() if times > 1)
    if twice:
        yield f"model.cross_attention.layers names {_listed(twice)} more than once: name each layer once"


def cross_attention_heads(run: Run) -> Iterator[str]:
    """Heads divide by key-value heads and both by the tensor-parallel size; the language model's own are its rules' matter."""
    cross, language, tensor = run.model.cross_attention, run.model.language, run.layout.tensor
    if not has_cross_attention(run):
        return
    heads, kv_heads = cross.heads or language.heads, cross.kv_heads or language.kv_heads
    own = cross.heads or cross.kv_heads
    if own and heads % kv_heads:
        yield (f"model.cross_attention.kv_heads={kv_heads} must divide model.cross_attention.heads={heads} "
               "(null means the language model's)")
    for name in ("heads", "kv_heads", "ffn"):
        if (size := getattr(cross, name) or 0) % tensor:
            yield f"layout.tensor={tensor} must divide model.cross_attention.{name}={size}"


def trained_cross_attention(run: Run) -> Iterator[str]:
    """NVLM-D has no cross-attention to train."""
    if run.model.architecture != "nvlm_d":
        return
    for key in ("trainable", "lr_multipliers"):
        if "cross_attention" in getattr(run.train, key):
            yield (f"train.{key}: cross_attention is no part of model.architecture={run.model.architecture}; "
                   "leave it out, or use nvlm_x or nvlm_h")


def tiles_told_apart(run: Run) -> Iterator[str]:
    """The tag mask of X needs tags; H needs a thumbnail for its sequence."""
    model, data = run.model, run.data
    if data.max_tiles == 1:
        return
    if model.architecture == "nvlm_x" and model.cross_attention.tag_mask and model.tags.kind == "none":
        yield (f"model.cross_attention.tag_mask=true lets a tile's tag read that tile only, but model.tags.kind=none with "
               f"data.max_tiles={data.max_tiles} has no tags: set model.cross_attention.tag_mask=false or name tags")
    if model.architecture == "nvlm_h" and not data.thumbnail:
        yield (f"nvlm_h with data.max_tiles={data.max_tiles} needs data.thumbnail=true: of several tiles the thumbnail alone "
               "stands in the sequence; set it, or use data.max_tiles=1")


def resampler_heads(run: Run) -> Iterator[str]:
    connector, language = run.model.connector, run.model.language
    if connector.resampler_tokens and language.hidden % language.heads:
        yield (f"model.connector.resampler_tokens={connector.resampler_tokens} needs model.language.heads={language.heads} to "
               f"divide model.language.hidden={language.hidden}: the resampler works at that width with as many heads")


def has_cross_attention(run: Run) -> bool:
    return run.model.architecture in ("nvlm_x", "nvlm_h")


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))


CROSS_RULES = (cross_attention_layers, cross_attention_heads, trained_cross_attention, tiles_told_apart, resampler_heads)
