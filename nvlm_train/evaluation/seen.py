"""The tiles of a sample as the model gets them: which picture's, with which tag, where in its grid."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from nvlm_train.contracts import EncodedSample, Sample
from nvlm_train.data.encode import Encoder
from nvlm_train.data.images import image_size
from nvlm_train.data.tiling import Grid, choose_grid, tiles_of_grid
from nvlm_train.errors import DataError
from nvlm_train.geometry import FEWER_TILES


@dataclass(frozen=True)
class Seen:
    """A tile. picture: its number, from 0; place: (column, row), None for a thumbnail and for a picture of one tile; tile_CPP: uint8."""

    picture: int
    tag: str
    place: tuple[int, int] | None
    tile_CPP: np.ndarray

    def address(self, most: int | None = None) -> str:
        """As a PNG in a data address, no larger than `most` pixels a side."""
        picture, out = Image.fromarray(np.ascontiguousarray(self.tile_CPP.transpose(1, 2, 0))), io.BytesIO()
        if most is not None:
            picture.thumbnail((most, most))
        picture.save(out, "PNG")
        return data_address(out.getvalue(), "png")


def seen_tiles(encoded: EncodedSample, grids: Sequence[Grid], encoder: Encoder) -> Iterator[Seen]:
    """In their order. grids: of the sample's pictures (`grids_of`)."""
    tiles = iter(encoded.tiles)
    for picture, grid in enumerate(grids):
        columns, rows = grid
        for number, tag in enumerate(encoder.tags_of(grid)):
            placed = number < columns * rows and columns * rows > 1
            yield Seen(picture, tag, (number % columns, number // columns) if placed else None, next(tiles))


def grids_of(sample: Sample, encoder: Encoder, tiles: int) -> list[Grid]:
    """The grid of each picture, found by the number of tiles that encoding gave: a long sample gets fewer."""
    data, size = encoder.data, encoder.geometry.tile_size
    for limit in (data.max_tiles, *FEWER_TILES):
        grids = [choose_grid(*image_size(image), limit, size) for image in sample.images]
        if sum(tiles_of_grid(grid, data.thumbnail) for grid in grids) == tiles:
            return grids
    raise DataError(f"{sample.key}: no limit on tiles gives its {tiles} tiles; encoder and gallery disagree")


def data_address(image: bytes, kind: str) -> str:
    """kind: a file's ending."""
    kind = "jpeg" if kind == "jpg" else kind
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
