"""Dynamic high resolution: which grid of tiles a picture gets, and how it is cut (paper section 4.1, after InternVL 1.5).

A picture is stretched to the allowed grid whose shape is nearest to its own, cut row by row, and followed by a thumbnail
of the whole when there is more than one tile.
"""

from functools import lru_cache

import numpy as np
import torch

from nvlm_train.geometry import with_thumbnail

Grid = tuple[int, int]   # (columns, rows)
VERSION = 1   # raise it when a picture would get other tiles than before, of decoding too: cached features are of these


@lru_cache(maxsize=64)
def allowed_grids(max_tiles: int) -> tuple[Grid, ...]:
    """Every (columns, rows) of at most `max_tiles` tiles, fewest tiles first (14 grids for the paper's six tiles)."""
    if max_tiles < 1:
        raise ValueError(f"max_tiles is {max_tiles}; a picture needs at least one tile")
    grids = ((c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles // c + 1))
    return tuple(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid)))


def choose_grid(width: int, height: int, max_tiles: int, tile_size: int) -> Grid:
    """The (columns, rows) for a picture of width x height pixels.

    The nearest ratio wins, by plain difference and not by logarithm, as in the models NVLM is compared with. Grids of equal
    ratio (1x1, 2x2) tie: the larger is taken only if the picture fills more than half of its pixels.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width}x{height} pixels has no grid")
    ratio, area = width / height, width * height
    best, best_difference = (1, 1), float("inf")
    for cols, rows in allowed_grids(max_tiles):
        difference = abs(ratio - cols / rows)
        if difference < best_difference:
            best, best_difference = (cols, rows), difference
        elif difference == best_difference and area > 0.5 * tile_size * tile_size * cols * rows:
            best = (cols, rows)
    return best


def tiles_of_grid(grid: Grid, thumbnail: bool = True) -> int:
    """Tiles that a grid gives, its thumbnail included."""
    return with_thumbnail(grid[0] * grid[1], thumbnail)


def tile_count(width: int, height: int, max_tiles: int, tile_size: int, thumbnail: bool = True) -> int:
    """Tiles that a picture of width x height pixels gives, its thumbnail included."""
    return tiles_of_grid(choose_grid(width, height, max_tiles, tile_size), thumbnail)


class Scratch:
    """Byte buffers that grow and are reused, one set per thread.

    Fetching fresh pages from the kernel for every picture costs as much as resizing it, so decoding and resizing write here.
    """

    def __init__(self):
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, name: str, size: int) -> torch.Tensor:
        """`size` bytes, uint8 [size]; the same memory is handed out again by the next call with this name."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=torch.uint8)
        return buffer[:size]


def empty_tiles(n: int, tile_size: int) -> np.ndarray:
    """Room for tiles: uint8 [n, 3, P, P], whose colours lie side by side in memory as decoders give them.

    To put them into planes is a sixth of the work on a tile for a processor, and nothing for the device, where the encoder does it.
    """
    return np.empty((n, tile_size, tile_size, 3), dtype=np.uint8).transpose(0, 3, 1, 2)


def _resize(image_1CHW: torch.Tensor, height: int, width: int, name: str, scratch: Scratch) -> torch.Tensor:
    """Antialiased bicubic, uint8 in and out, channels last in memory. Writes into scratch: [height, width, 3]."""
    old_height, old_width = image_1CHW.shape[2:]
    # F.interpolate is this operator without `out`, and resizes along rows first. One direction at a time gives the same bits, and
    # what lies between the two is written to memory that is used again too.
    if old_width != width and old_height != height:
        image_1CHW = _resized_into(scratch.take("along rows", old_height * width * 3).view(old_height, width, 3), image_1CHW)
    resized_HWC = scratch.take(name, height * width * 3).view(height, width, 3)
    _resized_into(resized_HWC, image_1CHW)
    return resized_HWC


def _resized_into(out_HWC: torch.Tensor, image_1CHW: torch.Tensor) -> torch.Tensor:
    """Resize to the size of `out_HWC` and write there: as [1, 3, height, width], channels last."""
    out_1CHW = out_HWC.permute(2, 0, 1)[None]
    return torch.ops.aten._upsample_bicubic2d_aa.out(image_1CHW, list(out_HWC.shape[:2]), False, None, None, out=out_1CHW)


def tile(image: np.ndarray, grid: Grid, tile_size: int, thumbnail: bool = True, out: np.ndarray | None = None,
         scratch: Scratch | None = None) -> np.ndarray:
    """Cut a picture into tiles: row by row, then the thumbnail.

    image: uint8 [h, w, 3]. out: where to write, uint8 [n, 3, P, P] with n from `tiles_of_grid`; allocated if not given.
    Returns `out`. Raises ValueError when a shape does not fit.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected uint8 [height, width, 3], got {image.dtype} {list(image.shape)}")
    cols, rows = grid
    shape = (tiles_of_grid(grid, thumbnail), 3, tile_size, tile_size)
    if out is None:
        out = empty_tiles(shape[0], tile_size)
    elif out.shape != shape or out.dtype != np.uint8:
        raise ValueError(f"a {cols}x{rows} grid fills uint8 {list(shape)}, the buffer is {out.dtype} {list(out.shape)}")
    scratch = scratch or Scratch()
    # A read-only array (Pillow's) cannot be wrapped without a warning; such pictures are rare enough to copy.
    source = torch.from_numpy(image if image.flags.writeable else image.copy()).permute(2, 0, 1)[None]
    source = source.contiguous(memory_format=torch.channels_last)

    whole_HWC = _resize(source, rows * tile_size, cols * tile_size, "grid", scratch).numpy()
    blocks = whole_HWC.reshape(rows, tile_size, cols, tile_size, 3).transpose(0, 2, 4, 1, 3)
    for row, blocks_of_row in enumerate(blocks):
        np.copyto(out[row * cols:(row + 1) * cols], blocks_of_row)
    if shape[0] > rows * cols:
        small_HWC = _resize(source, tile_size, tile_size, "thumbnail", scratch).numpy()
        np.copyto(out[-1], small_HWC.transpose(2, 0, 1))
    return out
