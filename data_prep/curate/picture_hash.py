"""64 bits that stay nearly the same when a picture is resized, compressed again or slightly retouched: pHash.

pHash (the signs of the 64 lowest frequencies of a 32x32 grey picture around their median) sees shapes and not colours, and it sees
nothing at all in a flat picture; so a flat one is named by its bytes instead, and matches itself only.
"""

import hashlib

import numpy as np
from PIL import Image

from data_prep.curate.extra import package
from nvlm_train.data.images import decode

FLAT = 2.0      # standard deviation of the 32x32 grey levels below which rounding decides pHash
CENTRE = 0.8    # of both sides: what is left of a picture whose borders, frame or watermark were cut off


def picture_hash(data: bytes) -> int:
    """pHash of a picture as training sees it. Raises SampleRefused: broken_image, image_too_large; DataError: no imagehash."""
    return _hash(Image.fromarray(decode(data)), data)


def picture_hashes(data: bytes) -> tuple[int, int]:
    """pHash of a picture and of its centre. Raises as `picture_hash`."""
    whole = Image.fromarray(decode(data))
    width, height = whole.size
    left, top = round(width * (1 - CENTRE) / 2), round(height * (1 - CENTRE) / 2)
    return _hash(whole, data), _hash(whole.crop((left, top, width - left, height - top)), data)


def _hash(picture: Image.Image, data: bytes) -> int:
    imagehash = package("imagehash", "comparing pictures")
    grey = picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    if np.asarray(grey).std() < FLAT:
        return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
    return int.from_bytes(np.packbits(imagehash.phash(grey).hash).tobytes(), "little")
