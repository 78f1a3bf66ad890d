"""What one core needs to turn a JPEG into tiles: our path, the usual one, and the floor. `python -m benchmarks.data_path`

ours    strict turbo decode, uint8 antialiased bicubic, tiles as uint8 into one reused buffer (normalised on the device)
usual   Pillow decode, resize and crop, then for each tile ToTensor (float32 planes) and Normalize, stacked
floor   turbo decode and one resize to the grid: no tiles, no thumbnail, nothing strict; OpenCV's bilinear if it is installed, else
        torch's uint8 bilinear without antialias into a reused buffer

CPU time of one thread, best of several rounds over the same pictures. The pictures are crops of scikit-image's photographs.
"""

import argparse
import importlib.util
import io
import os
import sys
import time
from collections.abc import Callable

import numpy as np
import simplejpeg
import torch
from PIL import Image

from benchmarks.results import tell
from nvlm_train.data.images import decode, image_size
from nvlm_train.data.tiling import Scratch, choose_grid, empty_tiles, tile, tile_count, tiles_of_grid

# One thread everywhere, and glibc kept from returning every buffer to the kernel, for all three contenders alike.
TUNED = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "1073741824",
         "MALLOC_TOP_PAD_": "67108864"}
TILE, MAX_TILES = 448, 6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def restart_tuned() -> None:
    """glibc reads its settings when a process starts."""
    if any(os.environ.get(name) != value for name, value in TUNED.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **TUNED})


def make_jpegs(count: int) -> list[bytes]:
    """Crops of photographs, 480 to 1,200 px wide at several shapes, quality 85, as in web data."""
    from skimage import data  # here, so that the paths below can be used where scikit-image is not installed

    photographs = [Image.fromarray(photo()) for photo in (data.astronaut, data.coffee, data.chelsea, data.rocket)]
    rng = np.random.default_rng(0)
    jpegs = []
    for number in range(count):
        photo = photographs[number % len(photographs)]
        width = int(rng.integers(480, 1200))
        height = int(width / rng.choice([0.67, 0.75, 1.0, 1.33, 1.5, 1.78]))
        left, top = (int(rng.integers(0, side // 4)) for side in photo.size)
        file = io.BytesIO()
        photo.crop((left, top, photo.width - left // 2, photo.height - top // 2)).resize((width, height)).save(file, "JPEG", quality=85)
        jpegs.append(file.getvalue())
    return jpegs


def ours() -> Callable[[bytes], np.ndarray]:
    scratch, buffer = Scratch(), empty_tiles(MAX_TILES + 1, TILE)

    def path(jpeg: bytes):
        pixels = decode(jpeg, scratch)
        grid = choose_grid(pixels.shape[1], pixels.shape[0], MAX_TILES, TILE)
        return tile(pixels, grid, TILE, out=buffer[:tiles_of_grid(grid)], scratch=scratch)
    return path


def pillow_bicubic(image: Image.Image, width: int, height: int) -> Image.Image:
    """As a user calls it. Pillow 13 resizes in whichever direction first makes less work."""
    return image.resize((width, height), Image.Resampling.BICUBIC)


def pillow_rows_first(image: Image.Image, width: int, height: int) -> Image.Image:
    """Pillow's bicubic in the order of Pillow up to 12, of torch, and of the models trained with either: along rows, then columns.
    The two orders clip at different moments, so a few values beside saturated edges differ by more than rounding."""
    return pillow_bicubic(pillow_bicubic(image, width, image.height), width, height)


def pillow_tiles(jpeg: bytes, resize: Callable = pillow_bicubic) -> list[Image.Image]:
    """The tiles as Pillow images, thumbnail last."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    cols, rows = choose_grid(*image.size, MAX_TILES, TILE)
    whole = resize(image, TILE * cols, TILE * rows)
    tiles = [whole.crop((TILE * c, TILE * r, TILE * (c + 1), TILE * (r + 1))) for r in range(rows) for c in range(cols)]
    return tiles + ([resize(image, TILE, TILE)] if cols * rows > 1 else [])


def usual() -> Callable[[bytes], torch.Tensor]:
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]

    def to_tensor(image):
        """What torchvision's ToTensor does: bytes to planes to floats of 0 to 1."""
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)

    def path(jpeg: bytes):
        return torch.stack([to_tensor(image).sub_(mean).div_(std) for image in pillow_tiles(jpeg)])
    return path


def floor() -> Callable[[bytes], object]:
    if importlib.util.find_spec("cv2"):
        import cv2
        cv2.setNumThreads(1)
        buffer = np.empty(MAX_TILES * TILE * TILE * 3, np.uint8)

        def resize(pixels, width, height):
            return cv2.resize(pixels, (width, height), buffer[:width * height * 3].reshape(height, width, 3), interpolation=cv2.INTER_LINEAR)
    else:
        scratch = Scratch()

        def resize(pixels, width, height):
            out = scratch.take("grid", width * height * 3).view(height, width, 3).permute(2, 0, 1)[None]
            source = torch.from_numpy(pixels).permute(2, 0, 1)[None]
            return torch.ops.aten.upsample_bilinear2d.out(source, [height, width], False, None, None, out=out)

    decoded = bytearray(1200 * 1800 * 3)

    def path(jpeg: bytes):
        pixels = simplejpeg.decode_jpeg(jpeg, buffer=decoded)
        cols, rows = choose_grid(pixels.shape[1], pixels.shape[0], MAX_TILES, TILE)
        return resize(pixels, cols * TILE, rows * TILE)
    return path


def cpu_ms(paths: dict, jpegs: list[bytes], rounds: int) -> dict[str, float]:
    """CPU milliseconds a picture, the best round of each; rounds of the contenders alternate, so that neighbours disturb all alike."""
    best = dict.fromkeys(paths, float("inf"))
    for _ in range(rounds):
        for name, path in paths.items():
            start = time.process_time()
            for jpeg in jpegs:
                path(jpeg)
            best[name] = min(best[name], (time.process_time() - start) * 1000 / len(jpegs))
    return best


def differences(jpegs: list[bytes], resize: Callable) -> dict[str, float]:
    """Our tiles against Pillow's, in levels of 255: the largest difference on tiles and on thumbnails, and the mean of all."""
    path, sums = ours(), []
    largest = {"tiles": 0, "thumbnails": 0}
    for jpeg in jpegs:
        expected = [np.asarray(image).transpose(2, 0, 1).astype(int) for image in pillow_tiles(jpeg, resize)]
        for number, (found, other) in enumerate(zip(path(jpeg), expected, strict=True)):
            kind = "thumbnails" if 0 < number == len(expected) - 1 else "tiles"
            difference = np.abs(found - other)
            largest[kind] = max(largest[kind], int(difference.max()))
            sums.append(difference.mean())
    return {"max_tiles": largest["tiles"], "max_thumbnails": largest["thumbnails"], "mean": round(float(np.mean(sums)), 5)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    options = parser.parse_args()
    restart_tuned()

    jpegs = make_jpegs(options.pictures)
    paths = {"ours": ours(), "usual": usual(), "floor": floor()}
    cpu_ms(paths, jpegs, 1)   # warm: first touches and caches
    times = cpu_ms(paths, jpegs, options.rounds)
    tiles = sum(tile_count(*image_size(jpeg), MAX_TILES, TILE) for jpeg in jpegs) / len(jpegs)
    result = {
        "cpu_ms_per_picture": {name: round(ms, 3) for name, ms in times.items()}, "pictures_per_s_per_core": round(1000 / times["ours"], 1),
        "faster_than_usual": round(times["usual"] / times["ours"], 2), "over_floor": round(times["ours"] / times["floor"], 2),
        "difference_to_pillow": differences(jpegs, pillow_rows_first),
        "difference_to_pillow_in_one_call": differences(jpegs, pillow_bicubic), "tiles_per_picture": round(tiles, 2), "pictures": len(jpegs),
        "floor_resize": "opencv bilinear" if importlib.util.find_spec("cv2") else "torch uint8 bilinear"}
    print(f"{'path':8} {'CPU ms':>8} {'pictures/s/core':>16}")
    for name, ms in times.items():
        print(f"{name:8} {ms:8.2f} {1000 / ms:16.0f}")
    tell(result, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
