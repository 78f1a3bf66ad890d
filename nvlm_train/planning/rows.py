"""The fullest row that a run's budgets allow: what memory must be found for, whatever a step happens to hold."""

from dataclasses import dataclass, replace

from nvlm_train.config.schema import Run
from nvlm_train.config.split import CHUNKS, tiles_each
from nvlm_train.geometry import geometry_of, with_thumbnail


@dataclass(frozen=True)
class RowSize:
    """Sizes of one row (a micro-batch).

    tokens: T, padding included; tiles: n, of which `shown` stand in the sequence and the others in the memory; supervised: tokens
    with a loss, K; memory: tokens of the memory, tags included; tags: those of them that are tags; readers: tokens of the sequence
    that read the memory; keys: memory tokens that they read, each once for every span of readers that reads it; spans: of readers.
    attended, placed: where a row is shared out, what a rank's part needs beyond its own (`rank_size`): tokens whose keys and
    values its attention reads, and visual tokens put into its sequence and memory.
    """

    tokens: int
    tiles: int
    supervised: int
    shown: int = 0
    memory: int = 0
    tags: int = 0
    readers: int = 0
    keys: int = 0
    spans: int = 0
    attended: int | None = None
    placed: int | None = None


def fullest(run: Run) -> RowSize:
    """All tokens and tiles that the budgets allow, every token supervised but the last (a row of text alone can be like that).

    NVLM-X: tags that are bound to their tiles come first, and the text behind them reads every tile, so each tile is read twice.
    NVLM-H: of each image the thumbnail is shown, the other tiles are read, each behind its tag.
    """
    data, model = run.data, run.model
    T, each = data.pack_tokens, geometry_of(model).tokens
    if model.architecture == "nvlm_d":
        tiles = min(data.pack_tiles, T // each)
        return RowSize(T, tiles, T - 1, shown=tiles)
    tagged = model.tags.kind != "none"
    if model.architecture == "nvlm_x":
        tiles = data.pack_tiles
        bound = tagged and model.cross_attention.tag_mask and data.max_tiles > 1 and tiles * model.tags.max_tokens < T
        return RowSize(T, tiles, T - 1, memory=tiles * each, readers=T, keys=tiles * each * (1 + bound),
                       spans=1 + tiles * bound)
    image = with_thumbnail(data.max_tiles, data.thumbnail)
    shown = min(-(-data.pack_tiles // image), (T - 1) // each)
    kept = data.pack_tiles - shown
    tags = kept * model.tags.max_tokens if tagged else 0
    memory = kept * each + tags
    return RowSize(T, data.pack_tiles, T - 1, shown, memory, tags, readers=T if kept else 0, keys=memory, spans=int(kept > 0))


def rank_size(run: Run, size: RowSize) -> RowSize:
    """The fullest rank's part of a row of this size. Attention reads most keys where the row is one long sample: those of the first
    and of the last chunk. Its two chunks may read each memory tile once more than the whole row's one span."""
    ranks = run.layout.context
    if ranks == 1:
        return size
    tokens, each = size.tokens // ranks, geometry_of(run.model).tokens
    kept = size.tiles - size.shown
    return replace(size, tokens=tokens, tiles=tiles_each(size.tiles, ranks), supervised=min(size.supervised, tokens),
                   readers=min(size.readers, tokens), keys=size.keys + size.memory * (size.readers > 0),
                   attended=size.tokens + size.tokens // (CHUNKS * ranks), placed=min(tokens, size.shown * each) + kept * each)
