import io
import struct
import zlib

import numpy as np
import pytest
from data_toys import encoded, picture
from PIL import Image, ImageOps

from nvlm_train.data.images import MAX_PIXELS, decode, image_extension, image_size
from nvlm_train.data.tiling import Scratch
from nvlm_train.errors import SampleRefused


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises width x height pixels, with hardly any data behind it."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_jpeg_equals_pillow_bit_for_bit():
    data = encoded(picture(90, 61))
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind, extension", [("PNG", "png"), ("WEBP", "webp"), ("BMP", "bmp"), ("TIFF", "tif"), ("GIF", "gif")])
def test_the_type_is_read_from_the_bytes(kind, extension):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15] = (255, 0, 0)
    data = encoded(pixels, kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decode(data), pixels)
    assert image_size(data) == (30, 20) and image_extension(data) == extension


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(40, 24), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode(data, Scratch()), expected)
    assert image_size(data) == expected.shape[1::-1] == ((40, 24) if orientation < 5 else (24, 40))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_cost_the_picture():
    data = encoded(picture(40, 24), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7fgarbage")
    assert image_size(data) == (40, 24) and decode(data).shape == (24, 40, 3)


def test_cmyk_jpeg_keeps_its_colours():
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:] = (255, 0, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(file, "JPEG", quality=95)
    assert b"Adobe" in file.getvalue()[:64]   # Adobe stores the inks inverted
    assert np.abs(decode(file.getvalue()).astype(int) - (255, 0, 0)).max() <= 2


def test_grey_jpeg_becomes_rgb():
    pixels = decode(encoded(picture(30, 20)[:, :, 0]))
    assert pixels.shape == (20, 30, 3) and (pixels[..., 0] == pixels[..., 2]).all()


def test_16_bit_grey_is_scaled():
    grey = np.array([[0, 257, 40_000, 65_535]], dtype=np.uint16)
    assert decode(encoded(grey, "PNG"))[0, :, 0].tolist() == [0, 1, 156, 255]


def test_transparency_is_laid_on_white():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, :2] = (255, 0, 0, 0)      # a colour nobody can see
    rgba[:, 2:] = (0, 0, 255, 128)
    pixels = decode(encoded(rgba, "PNG"))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert np.abs(pixels[0, 3].astype(int) - (127, 127, 255)).max() <= 1
    palette = Image.fromarray(np.zeros((4, 4), np.uint8), "P")
    palette.putpalette([255, 0, 0])
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=0)
    assert decode(file.getvalue())[0, 0].tolist() == [255, 255, 255]


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    assert decode(file.getvalue())[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("data", [b"", b"<html><body>404 Not Found</body></html>", b"\xff\xd8\xff\xe0" + b"x" * 50, bytes(1000),
                                  b"%!PS-Adobe-3.0 EPSF-3.0\n"], ids=["empty", "html", "jpeg head", "zeros", "postscript"])
def test_what_is_no_picture_is_refused(data):
    for function in (decode, image_size):
        with pytest.raises(SampleRefused) as caught:
            function(data)
        assert caught.value.reason == "broken_image" and caught.value.detail


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_files_are_refused(kind):
    data = encoded(picture(80, 80), kind)
    with pytest.raises(SampleRefused) as caught:
        decode(data[:len(data) * 2 // 3])
    assert caught.value.reason == "broken_image"


def test_a_hole_inside_a_jpeg_is_refused():
    data = bytearray(encoded(picture(120, 120)))
    data[len(data) // 2:len(data) // 2 + 200] = bytes(200)   # lost pages: Pillow returns a picture without a word
    assert Image.open(io.BytesIO(data)).convert("RGB").size == (120, 120)
    with pytest.raises(SampleRefused, match="broken_image"):
        decode(bytes(data))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width, height", [(30_000, 30_000), (12_000, 12_000), (9_460, 9_460)])
def test_a_pixel_bomb_is_refused_by_its_header(width, height):
    assert width * height > MAX_PIXELS
    for function in (image_size, decode):
        with pytest.raises(SampleRefused, match="image_too_large"):
            function(png_of_size(width, height))


def test_scratch_holds_the_pixels_until_the_next_picture():
    scratch, first, second = Scratch(), encoded(picture(64, 48, 1)), encoded(picture(64, 48, 2))
    kept = decode(first, scratch).copy()
    np.testing.assert_array_equal(decode(second, scratch), decode(second))
    np.testing.assert_array_equal(decode(first), kept)
