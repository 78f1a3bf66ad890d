"""How a layout splits a model over ranks: heads, vocabulary, layers, tiles, room for the image memory. Plain arithmetic; the one
home of it for the model, which builds a rank's part, and for planning, which counts it."""

from nvlm_train.config.layers import cross_layers
from nvlm_train.config.schema import Layout, Model
from nvlm_train.geometry import geometry_of

CHUNKS = 2      # that a row is cut into for each context-parallel rank


def padded_size(size: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not less than `size`: of a tensor-parallel size the encoder's heads with its dummies, and
    rows of the vocabulary; lengths of rows and caches."""
    return -(-size // multiple) * multiple


def encoder_tensor(layout: Layout) -> int:
    """Ranks that the vision encoder's weights are split over: one where its tiles are shared out instead."""
    return 1 if layout.share_tiles else layout.tensor


def tiles_each(tiles: int, ranks: int) -> int:
    """Of a row's tiles, where ranks share them out (`layout.share_tiles`, context parallelism): so many for each rank but the
    last ones, which may have fewer, or none."""
    return -(-tiles // ranks)


def tiles_of_rank(tiles: int, rank: int, ranks: int) -> slice:
    """A rank's own of them."""
    each = tiles_each(tiles, ranks)
    return slice(rank * each, (rank + 1) * each)


def row_multiple(layout: Layout) -> int:
    """Rows of a replica come in multiples of this: an interleaved pipeline needs whole rounds of its stages."""
    return layout.pipeline if layout.virtual > 1 else 1


def memory_budget(model: Model, pack_tiles: int, tensor: int) -> int:
    """M at most: memory tokens of the fullest row, a multiple of `tensor`; 0 for NVLM-D. Fixed, so that pipeline stages may exchange
    [hidden ; memory] of one length."""
    if not cross_layers(model):
        return 0
    tag = model.tags.max_tokens if model.architecture == "nvlm_h" and model.tags.kind != "none" else 0
    return padded_size(pack_tiles * (geometry_of(model).tokens + tag), tensor)


def stage_layers(layers: int, layout: Layout, pipeline_rank: int) -> list[range]:
    """Decoder layers, counted from 0, of each (virtual) stage of a pipeline rank, as Megatron-Core deals them.

    The first rank may hold fewer (`layout.first_stage_layers`). With virtual stages every rank's share is cut into `virtual` pieces,
    and the model goes around the ranks that many times. The layout's rules are taken to hold.
    """
    pipeline, virtual, first = layout.pipeline, layout.virtual, layout.first_stage_layers
    if pipeline == 1:
        return [range(layers)]
    others = layers // pipeline if first is None else (layers - first) // (pipeline - 1)
    shares = [others if first is None else first, *[others] * (pipeline - 1)]
    pieces = [share // virtual for share in shares]
    before, around = sum(pieces[:pipeline_rank]), sum(pieces)
    return [range(turn * around + before, turn * around + before + pieces[pipeline_rank]) for turn in range(virtual)]
