"""The tiles of a request as the model gets them, small enough to be shown."""

from nvlm_train.contracts import EncodedSample, Sample
from nvlm_train.data.encode import Encoder
from nvlm_train.data.images import image_size
from nvlm_train.evaluation.seen import grids_of, seen_tiles

SIDE = 160      # pixels at most of a shown tile


def tiles_shown(sample: Sample, encoded: EncodedSample, encoder: Encoder) -> list[dict]:
    """Of each picture its size in pixels, its grid, and its tiles: tag, place (absent for a thumbnail), and a small picture as a data
    address."""
    grids, shown = grids_of(sample, encoder, len(encoded.tiles)), []
    for image, (columns, rows) in zip(sample.images, grids, strict=True):
        width, height = image_size(image)
        shown.append({"width": width, "height": height, "columns": columns, "rows": rows, "tiles": []})
    for seen in seen_tiles(encoded, grids, encoder):
        place = {} if seen.place is None else dict(zip(("column", "row"), seen.place, strict=True))
        shown[seen.picture]["tiles"].append({"tag": seen.tag, "image": seen.address(SIDE), **place})
    return shown
