"""What pHash finds of photographs that were cut, and which different ones it takes for one. `python -m benchmarks.picture_hash`

Photographs come with scikit-image. Each is cut to a centred share of both sides, stored as JPEG, and compared with the whole as
`decontaminate` compares training pictures with a benchmark's: any of its hashes within 8 bits.
"""

import io
import sys
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import skimage.data
from PIL import Image

from benchmarks.results import tell
from data_prep.curate.benchmark_index import Overlap
from data_prep.curate.picture_hash import CENTRES, picture_hashes

PHOTOGRAPHS = ("astronaut", "brick", "camera", "cat", "coffee", "coins", "colorwheel", "grass", "gravel", "hubble_deep_field",
               "immunohistochemistry", "moon", "page", "retina", "rocket", "text")
SHARES = (0.98, 0.96, 0.94, 0.92, 0.9, 0.88, 0.86, 0.84, 0.82, 0.8)


def stored(picture: Image.Image, share: float = 1.0) -> bytes:
    """The middle of a picture as JPEG."""
    width, height = (round(side * share) for side in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    file = io.BytesIO()
    picture.crop((left, top, left + width, top + height)).save(file, "JPEG", quality=90)
    return file.getvalue()


def alike(a: tuple[int, ...], b: tuple[int, ...], bits: int) -> bool:
    return any((one ^ other).bit_count() <= bits for one in a for other in b)


def main(photographs: Sequence[str] = PHOTOGRAPHS) -> int:
    pictures = [Image.fromarray(np.asarray(getattr(skimage.data, name)())).convert("RGB") for name in photographs]
    bits = Overlap().hamming
    whole = [picture_hashes(stored(picture)) for picture in pictures]
    cut = [picture_hashes(stored(picture, share)) for picture in pictures for share in SHARES]
    of_whole = [hashes for hashes in whole for _ in SHARES]
    found = sum(alike(a, b, bits) for a, b in zip(of_whole, cut, strict=True))
    without = sum(alike(a[:1], b[:1], bits) for a, b in zip(of_whole, cut, strict=True))
    wrong = [pair for pair in combinations(range(len(whole)), 2) if alike(whole[pair[0]], whole[pair[1]], bits)]
    print(f"{found} of {len(cut)} cut pictures are found ({without} without the centres {', '.join(map(str, CENTRES))}); "
          f"{len(wrong)} of {len(whole) * (len(whole) - 1) // 2} pairs of different ones match")
    tell({"bits": bits, "cut": len(cut), "found": found, "found_without_centres": without, "wrong_pairs": len(wrong)}, None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
