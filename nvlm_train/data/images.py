"""Strict decoding: bytes of a picture in, RGB pixels or a refusal out. Nothing half-decoded ever reaches training.

Rules: the true type is read from the bytes, not from the name; the size in the header is checked before anything is decoded;
EXIF orientation is applied once; transparency is laid on white; 16-bit grey is scaled; of an animation the first frame counts.
"""

import io
import struct

import numpy as np
import simplejpeg
from PIL import Image

from nvlm_train.data.tiling import Scratch
from nvlm_train.errors import SampleRefused

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 89_478_485   # where Pillow begins to warn of decompression bombs: 256 MB as RGB; an A4 page at 600 dpi is 35 M

_JPEG_MAGIC = b"\xff\xd8\xff"
_ORIENTATION = 0x0112
_SWAPPED = (5, 6, 7, 8)   # EXIF orientations that exchange width and height
# EXIF orientation -> numpy steps that undo it: (transpose first, flip rows, flip columns)
_UPRIGHT = {2: (False, False, True), 3: (False, True, True), 4: (False, True, False), 5: (True, False, False),
            6: (True, False, True), 7: (True, True, True), 8: (True, True, False)}


def _refuse_broken(error: Exception) -> SampleRefused:
    return SampleRefused("broken_image", str(error) or type(error).__name__)


def _open(data: bytes) -> Image.Image:
    """Read the header only."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SampleRefused("image_too_large", str(error)) from error
    except Exception as error:   # Pillow's plugins raise many types on hostile bytes; all mean the same here
        start = data[:16]
        raise SampleRefused("broken_image", f"not a readable {', '.join(FORMATS)} picture; it starts with {start!r}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise SampleRefused("image_too_large", f"{width}x{height} is {width * height:,} pixels, the limit is {MAX_PIXELS:,}")
    if width < 1 or height < 1:
        raise SampleRefused("broken_image", f"{width}x{height} pixels")
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation still to be applied: 1 for none, or when the EXIF block is damaged.

    Pillow turns TIFF by itself. A PNG may carry EXIF after its pixels; only what stands before them is known without decoding,
    and both functions of this file must agree, so only that counts.
    """
    block = image.info.get("exif")
    if image.format == "TIFF" or not block:
        return 1
    exif = Image.Exif()
    try:
        exif.load(block)
        value = exif.get(_ORIENTATION, 1)
    except (SyntaxError, ValueError, KeyError, IndexError, TypeError, OSError, struct.error):   # damaged EXIF: pixels may be fine
        return 1
    return value if value in _UPRIGHT else 1


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels as `decode` will return them, from the header alone.

    Raises SampleRefused: broken_image, image_too_large.
    """
    image = _open(data)
    width, height = image.size
    return (height, width) if _orientation(image) in _SWAPPED else (width, height)


def image_extension(data: bytes) -> str:
    """The file extension that fits the bytes ("jpg", "png", ...). Raises SampleRefused: broken_image, image_too_large."""
    kind = _open(data).format
    return {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}.get(kind, kind.lower())


def oddities(data: bytes) -> tuple[str, ...]:
    """What `decode` has to change beside unpacking, told by the header: none for upright pictures of 8 bits without transparency.

    turned: stored in another orientation. cmyk: printing inks. sixteen_bit: 16-bit samples. alpha: transparency of any kind.
    Raises SampleRefused: broken_image, image_too_large.
    """
    image = _open(data)
    tiff_turned = image.format == "TIFF" and image.tag_v2.get(_ORIENTATION, 1) in _UPRIGHT     # which Pillow undoes by itself
    deep = image.mode.startswith("I") or (image.format == "PNG" and data[24] == 16)     # byte 24 of a PNG is its bit depth
    found = {"turned": tiff_turned or _orientation(image) != 1, "cmyk": image.mode == "CMYK", "sixteen_bit": deep,
             "alpha": image.has_transparency_data}
    return tuple(name for name, is_so in found.items() if is_so)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB, keeping what a person would see on a white page."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):   # convert("RGB") would clip at 255 instead of scaling
        return _scaled(image).convert("RGB")
    if image.mode == "F":
        raise SampleRefused("broken_image", "floating-point pixels have no agreed white; convert the picture to 8 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey. One value may stand for transparent, and becomes white."""
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise SampleRefused("broken_image", f"grey values from {grey.min()} to {grey.max()}, 16 bits hold 0 to 65535")
    grey[grey == image.info.get("transparency")] = 65535
    return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))


def _decode_jpeg(data: bytes, inks: bool, scratch: Scratch | None) -> np.ndarray:
    """libjpeg-turbo, strict: a damaged scan is an error (Pillow would return a partly grey picture without a word).

    inks: it is CMYK or YCCK. Like Pillow and Photoshop we take its values as inverted: 255 is no ink.
    """
    if inks:
        bare_HW4 = simplejpeg.decode_jpeg(data, colorspace="CMYK")
        height, width, _ = bare_HW4.shape
        return np.asarray(Image.frombytes("CMYK", (width, height), (255 - bare_HW4).tobytes()).convert("RGB"))
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    buffer = None if scratch is None else scratch.take("decoded", height * width * 3).numpy()
    return simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=buffer)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation == 1:
        return pixels
    transpose, flip_rows, flip_cols = _UPRIGHT[orientation]
    if transpose:
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels[::-1 if flip_rows else 1, ::-1 if flip_cols else 1])


def decode(data: bytes, scratch: Scratch | None = None) -> np.ndarray:
    """Pixels, uint8 [height, width, 3], upright.

    With `scratch` the pixels may lie in its memory: they last until the next picture is decoded with it.
    Raises SampleRefused: broken_image, image_too_large.
    """
    image = _open(data)
    orientation = _orientation(image)   # before the pixels, which may have EXIF behind them
    try:
        if data[:3] == _JPEG_MAGIC:
            pixels = _decode_jpeg(data, image.mode == "CMYK", scratch)
        else:
            pixels = np.asarray(_to_rgb(image))
    except SampleRefused:
        raise
    except MemoryError:
        raise
    except Exception as error:   # truncated or damaged data, in the words of whichever decoder met it
        raise _refuse_broken(error) from error
    return _upright(pixels, orientation)
