"""Tile tags: plain text that tells the language model which tile follows (paper section 4.2)."""

from nvlm_train.config.schema import Tags
from nvlm_train.data.tiling import Grid
from nvlm_train.geometry import with_thumbnail

KINDS = ("none", "1d", "2d_grid", "2d_bbox")


def _regular_tag(kind: str, number: int, grid: Grid, tile_size: int) -> str:
    """Tag of the regular tile `number`, counted row by row from 0."""
    row, col = divmod(number, grid[0])
    if kind == "1d":
        return f"<tile_{number + 1}>"
    if kind == "2d_grid":
        return f"<tile_x{col}_y{row}>"
    x, y = col * tile_size, row * tile_size
    return f"<box> ({x}, {y}), ({x + tile_size}, {y + tile_size}) </box>"


def tile_tags(tags: Tags, grid: Grid, tile_size: int, thumbnail: bool) -> list[str]:
    """One tag per tile, in tile order; empty strings for `none`.

    A picture of one tile has only the thumbnail's tag. Numbers in `2d_grid` count from 0; `2d_bbox` gives pixels of the
    stretched picture (left, top), (right, bottom).
    """
    if tags.kind not in KINDS:
        raise ValueError(f"model.tags.kind is {tags.kind!r}; it is one of {', '.join(KINDS)}")
    regular = grid[0] * grid[1]
    if tags.kind == "none":
        return [""] * with_thumbnail(regular, thumbnail)
    whole = f"<{tags.global_name}>"
    if regular == 1:
        return [whole]
    return [_regular_tag(tags.kind, i, grid, tile_size) for i in range(regular)] + [whole] * thumbnail
