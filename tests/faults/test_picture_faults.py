"""Pictures as people really store them, from the bytes of a shard to the pixels that are learned. Numbers: docs/data_faults.md."""

import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data_prep.convert.boxes import frame, rectangle, scaled
from data_prep.curate.pictures import Pictures, check_picture
from data_prep.shards import index_folder
from nvlm_train.data.images import decode, image_size
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import SampleRefused
from tests.data.data_toys import picture
from tests.faults.broken_data import chunk, deep_png, hole, inks, record, stored, turned, write_tar

WHITE, RED, LIME, BLUE = (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)


# 42: 16 bits

DEEP = {   # 40,000 of 65,535 is 156 of 255, which clipping would make white
    "grey": (deep_png(np.array([[[0], [257], [40_000], [65_535]]])), [[0] * 3, [1] * 3, [156] * 3, [255] * 3]),
    "grey and alpha": (deep_png(np.array([[[1000, 0], [40_000, 65_535]]])), [[255] * 3, [156] * 3]),
    "grey, one value transparent": (deep_png(np.array([[[1000], [40_000]]]), chunk(b"tRNS", b"\x03\xe8")), [[255] * 3, [156] * 3]),
    "RGB": (deep_png(np.array([[[0, 25_700, 40_000], [65_535, 1, 256]]])), [[0, 100, 156], [255, 0, 1]]),
    "RGBA": (deep_png(np.array([[[0, 25_700, 40_000, 65_535], [65_535, 0, 0, 0]]])), [[0, 100, 156], [255, 255, 255]]),
    "TIFF": (stored(Image.fromarray(np.array([[0, 257, 40_000, 65_535]], np.uint16)), "TIFF"), [[0] * 3, [1] * 3, [156] * 3, [255] * 3]),
}


@pytest.mark.parametrize("name", DEEP)
def test_16_bits_become_8_without_clipping(name):
    data, expected = DEEP[name]
    assert decode(data)[0].tolist() == expected


def test_a_pass_stores_16_bits_as_training_sees_them():
    data = deep_png(np.tile(np.array([[[40_000, 0, 65_535]]]), (30, 30, 1)))
    fixed, repairs = check_picture(data, Pictures())
    assert repairs == ("sixteen_bit",) and (decode(fixed) == (156, 0, 255)).all()


# 43: transparency

def see_through(mode: str) -> Image.Image:
    """Left half: a colour that nobody can see. Right half: opaque blue (black, where the mode has no colours)."""
    picture = Image.new("RGBA", (8, 8), (*RED, 0))
    picture.paste((*BLUE, 255), (4, 0, 8, 8))
    return picture.convert(mode)


def keyed(mode: str) -> Image.Image:
    """A picture of two values, of which the left is to be transparent."""
    picture = Image.new(mode, (8, 8), 1 if mode in "LP" else RED)
    picture.paste(0 if mode in "LP" else BLUE, (4, 0, 8, 8))
    if mode == "P":
        picture.putpalette([*BLUE, *RED])
    return picture


TRANSPARENT = {
    "RGBA": (stored(see_through("RGBA")), BLUE), "LA": (stored(see_through("LA")), (29, 29, 29)),
    "WebP": (stored(see_through("RGBA"), "WEBP", lossless=True, exact=True), BLUE), "TIFF": (stored(see_through("RGBA"), "TIFF"), BLUE),
    "palette": (stored(keyed("P"), transparency=1), BLUE), "GIF": (stored(keyed("P"), "GIF", transparency=1), BLUE),
    "grey key": (stored(keyed("L"), transparency=1), (0, 0, 0)), "RGB key": (stored(keyed("RGB"), transparency=RED), BLUE),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_is_white(name):
    data, opaque = TRANSPARENT[name]
    pixels = decode(data)
    assert (pixels[:, :4] == WHITE).all() and (pixels[:, 4:] == opaque).all()
    fixed, repairs = check_picture(data, Pictures(short_side=1))
    assert repairs == ("alpha",) and (decode(fixed) == pixels).all()


# 44: printing inks

@pytest.mark.parametrize("form", ["CMYK", "YCCK"])
def test_inks_become_the_colours_they_print(form):
    for colour in (RED, LIME, BLUE, WHITE, (0, 0, 0), (200, 100, 50)):
        data = inks(Image.new("RGB", (40, 24), colour), form)
        assert b"Adobe" in data[:600] and np.abs(decode(data).astype(int) - colour).max() <= 3, colour
        assert image_size(data) == (40, 24)


@pytest.mark.parametrize("form", ["CMYK", "YCCK"])
def test_inks_are_decoded_as_strictly_as_other_jpegs(form):
    data = inks(Image.fromarray(picture(120, 120)), form)
    for broken in (data[:len(data) * 2 // 3], hole(data, 0.45)):
        with pytest.raises(SampleRefused, match="broken_image"):
            decode(broken)


# 45: several frames

def frames(kind: str, **options) -> bytes:
    first, *others = [Image.new("RGB", (30, 20), colour) for colour in (RED, LIME, BLUE)]
    return stored(first, kind, save_all=True, append_images=others, **options)


FRAMES = {
    "GIF": frames("GIF", duration=100), "WebP": frames("WEBP", lossless=True), "APNG": frames("PNG"), "TIFF": frames("TIFF"),
    "APNG with a picture for others": frames("PNG", default_image=True),
}


@pytest.mark.parametrize("name", FRAMES)
def test_of_several_frames_the_first_counts(name):
    assert (decode(FRAMES[name]) == RED).all() and image_size(FRAMES[name]) == (30, 20)


# 46: orientation

SCENE = Image.fromarray(picture(40, 24))


def late_exif(orientation: int) -> bytes:
    """A PNG with its EXIF behind the pixels, where only a decoder comes by."""
    data = stored(SCENE)
    return data[:-12] + chunk(b"eXIf", turned(orientation).tobytes().removeprefix(b"Exif\0\0")) + data[-12:]


def test_sizes_in_the_index_are_those_of_the_decoded_pictures(tmp_path):
    pictures = [stored(SCENE, kind, exif=turned(orientation)) for kind in ("JPEG", "PNG", "WEBP", "TIFF") for orientation in range(1, 9)]
    pictures += [late_exif(6), *FRAMES.values(), *(data for data, _ in TRANSPARENT.values())]
    members = {f"k{n}.json": record(f"k{n}.0.png") for n in range(len(pictures))} | {f"k{n}.0.png": data for n, data in enumerate(pictures)}
    write_tar(tmp_path / "a.tar", members)
    index_folder(tmp_path)
    folder = ShardFolder(tmp_path, "x")
    sizes = {folder.key(n): folder.image_sizes(n)[0] for n in range(len(folder))}
    for n, data in enumerate(pictures):
        height, width, _ = decode(data).shape
        assert sizes[f"k{n}"] == (width, height)
    assert [sizes[f"k{n}"] for n in range(32)] == [(40, 24)] * 4 + [(24, 40)] * 4 + ([(40, 24)] * 4 + [(24, 40)] * 4) * 3


@settings(max_examples=80, deadline=None)
@given(garbage=st.binary(max_size=60), kind=st.sampled_from(["JPEG", "PNG", "WEBP"]), head=st.sampled_from([b"", b"II*\0", b"MM\0*", b"II*\0\x08\0\0\0"]))
def test_garbage_in_exif_costs_no_picture(garbage, kind, head):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = stored(SCENE, kind, exif=b"Exif\0\0" + head + garbage)
        pixels = decode(data)
        assert image_size(data) == pixels.shape[1::-1] and sorted(pixels.shape) == [3, 24, 40]


def marked(orientation: int, side: int = 24) -> bytes:
    """A lime picture of 40 x side pixels with a red mark, stored with this orientation."""
    picture = Image.new("RGB", (40, side), LIME)
    picture.paste(RED, (4, 2, 14, 8))
    return stored(picture, exif=turned(orientation))


@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
def test_boxes_drawn_on_the_upright_picture_fit_it(orientation):
    data = marked(orientation)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    left, top, right, bottom = shown.getchannel("R").getbbox()
    size = frame(data, shown.size)
    assert size == shown.size == image_size(data)
    (x1, y1), _, (x2, y2), _ = scaled(rectangle(left, top, right - left, bottom - top), size)
    in_x, in_y = (slice(round(low * side / 1000), round(high * side / 1000)) for low, high, side in ((x1, x2, size[0]), (y1, y2, size[1])))
    red = (decode(data) == RED).all(axis=2)
    assert red[in_y, in_x].all() and red[in_y, in_x].size == red.sum() == 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_that_may_mean_the_stored_picture_are_refused(orientation):
    def reason(data: bytes, declared: tuple[int, int] | None) -> str | None:
        try:
            frame(data, declared)
        except SampleRefused as refusal:
            return refusal.reason
        return None
    ambiguous = None if orientation == 1 else "turned_picture"
    assert reason(marked(orientation), None) == ambiguous
    assert reason(marked(orientation), (40, 24)) == (ambiguous if orientation < 5 else "size_mismatch")
    assert reason(marked(orientation, 40), (40, 40)) == ambiguous, "a square tells nothing by its size"
