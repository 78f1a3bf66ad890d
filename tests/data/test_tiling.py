import numpy as np
import pytest
import torch
from data_toys import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nvlm_train.data.tiling import Scratch, allowed_grids, choose_grid, tile, tile_count, tiles_of_grid

sides = st.integers(1, 20_000)


def test_the_papers_fourteen_grids():
    assert set(allowed_grids(6)) == {(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (4, 1),
                                     (5, 1), (6, 1)}


@pytest.mark.parametrize("size, grid", [
    ((600, 600), (1, 1)), ((633, 633), (1, 1)), ((634, 634), (2, 2)), ((640, 640), (2, 2)),   # half of 4 tiles is 401,408 px
    ((800, 600), (3, 2)), ((600, 800), (2, 3)), ((1920, 1080), (2, 1)), ((448, 896), (1, 2)), ((448, 2688), (1, 6)),
    ((1, 1), (1, 1)), ((20_000, 2), (6, 1)), ((2, 20_000), (1, 6)), ((300, 149), (2, 1)),
])
def test_golden_grids_at_448(size, grid):
    assert choose_grid(*size, max_tiles=6, tile_size=448) == grid


@settings(deadline=None)
@given(width=sides, height=sides, max_tiles=st.integers(1, 12))
def test_never_more_tiles_than_allowed(width, height, max_tiles):
    cols, rows = choose_grid(width, height, max_tiles, 448)
    assert cols >= 1 and rows >= 1 and cols * rows <= max_tiles
    assert tile_count(width, height, max_tiles, 448) == cols * rows + (cols * rows > 1)
    assert tile_count(width, height, max_tiles, 448, thumbnail=False) == cols * rows


@settings(deadline=None)
@given(width=sides, height=sides, max_tiles=st.integers(1, 12))
def test_no_allowed_grid_has_a_nearer_ratio(width, height, max_tiles):
    cols, rows = choose_grid(width, height, max_tiles, 448)
    nearest = min(abs(width / height - c / r) for c in range(1, 13) for r in range(1, 13) if c * r <= max_tiles)
    assert abs(width / height - cols / rows) == nearest


@pytest.mark.parametrize("size, grid, levels", [
    ((900, 640), (3, 2), 2), ((300, 200), (3, 2), 2), ((64, 64), (1, 1), 2),
    ((500, 1200), (1, 2), 3),   # shrunk: torch keeps 16-bit filter weights, Pillow 22-bit ones, and noise shows a third level
])
def test_tiles_are_those_of_pillow(size, grid, levels):
    image = picture(*size)
    assert choose_grid(*size, 6, 448) == grid
    tiles = tile(image, grid, 448)
    assert len(tiles) == tiles_of_grid(grid)
    cols, rows = grid
    whole = np.asarray(Image.fromarray(image).resize((448 * cols, 448 * rows), Image.Resampling.BICUBIC)).astype(int)
    for number in range(cols * rows):
        row, col = divmod(number, cols)   # row by row
        expected = whole[448 * row:448 * (row + 1), 448 * col:448 * (col + 1)].transpose(2, 0, 1)
        assert np.abs(tiles[number] - expected).max() <= levels
    if cols * rows > 1:
        thumbnail = np.asarray(Image.fromarray(image).resize((448, 448), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(tiles[-1] - thumbnail.transpose(2, 0, 1)).max() <= levels


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_any_shape_can_be_cut(width, height):
    grid = choose_grid(width, height, 6, 28)
    tiles = tile(np.full((height, width, 3), 77, np.uint8), grid, 28)
    assert tiles.shape == (tiles_of_grid(grid), 3, 28, 28)
    assert (tiles == 77).all()   # a plain picture stays plain: nothing is left unwritten


@pytest.mark.parametrize("size", [(1, 1), (20_000, 2), (2, 20_000)])
def test_extreme_shapes_can_be_cut(size):
    grid = choose_grid(*size, 6, 28)
    tiles = tile(np.full((size[1], size[0], 3), 200, np.uint8), grid, 28)
    assert (tiles == 200).all() and len(tiles) in (1, 7)


def test_reused_buffers_do_not_mix_pictures():
    scratch, first, second = Scratch(), picture(200, 100, seed=1), picture(90, 200, seed=2)
    out = np.empty((3, 3, 28, 28), np.uint8)
    tile(first, (2, 1), 28, out=out, scratch=scratch)
    tile(second, (1, 2), 28, scratch=scratch)
    np.testing.assert_array_equal(out, tile(first, (2, 1), 28))
    np.testing.assert_array_equal(tile(first, (2, 1), 28, scratch=scratch), out)


@pytest.mark.parametrize("size", [(900, 700), (300, 200), (300, 700), (896, 333), (333, 448)])
def test_one_direction_at_a_time_gives_the_bits_of_both_at_once(size):
    """The second pass reads what the operator itself would keep between its two."""
    pixels = picture(*size)
    whole = torch.nn.functional.interpolate(torch.from_numpy(pixels).permute(2, 0, 1)[None], (448, 896), mode="bicubic", antialias=True)[0]
    expected = torch.stack([whole[:, :, :448], whole[:, :, 448:]]).numpy()
    np.testing.assert_array_equal(tile(pixels, (2, 1), 448, thumbnail=False), expected)


def test_a_buffer_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\[3, 3, 28, 28\].*\[2, 3, 28, 28\]"):
        tile(picture(60, 30), (2, 1), 28, out=np.empty((2, 3, 28, 28), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        tile(picture(60, 30).astype(np.float32), (1, 1), 28)
