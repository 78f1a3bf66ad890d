"""Pictures: decoded strictly, held against limits, and stored again only if something about them had to be undone."""

import io
from dataclasses import dataclass

import simplejpeg
from PIL import Image

from data_prep.curate.options import limit
from nvlm_train.data.images import MAX_PIXELS, decode, image_extension, image_size, oddities
from nvlm_train.errors import SampleRefused

JPEG_QUALITY = 95   # of turned or CMYK JPEGs, without chroma subsampling: text keeps its edges; the loss is below one grey level


@dataclass(frozen=True)
class Pictures:
    """Limits of a picture, upright, in pixels.

    A side under 28 is less than two patches of 14. The widest grid of six tiles is 6:1; a line of text at 10:1 is squeezed to
    0.6 of its width in it, and wider ones cannot be read.
    """

    short_side: int = limit(28, "smallest short side, pixels", metavar="PX")
    aspect: float = limit(10.0, "largest long side / short side", metavar="RATIO")
    max_pixels: int = limit(MAX_PIXELS, "most pixels, read from the header before anything is decoded", metavar="N")
    max_images: int = limit(16, "most pictures of a sample", metavar="N")


def check_picture(data: bytes, limits: Pictures) -> tuple[bytes, tuple[str, ...]]:
    """The picture as it goes on, and its repairs: (the same bytes, ()) for nearly all.

    Turned, CMYK, 16-bit and transparent pictures are stored again as training would see them: JPEG as JPEG, all else as PNG.
    Raises SampleRefused: broken_image, image_too_large, small_image, long_image.
    """
    width, height = image_size(data)
    short, long = sorted((width, height))
    if width * height > limits.max_pixels:
        raise SampleRefused("image_too_large", f"{width}x{height} is {width * height:,} pixels, the limit is {limits.max_pixels:,}")
    if short < limits.short_side:
        raise SampleRefused("small_image", f"{width}x{height}: the short side is under {limits.short_side} pixels")
    if long > limits.aspect * short:
        raise SampleRefused("long_image", f"{width}x{height} is {long / short:.1f} to 1, the limit is {limits.aspect:g} to 1")
    pixels = decode(data)
    repairs = oddities(data)
    if not repairs:
        return data, ()
    if image_extension(data) == "jpg":
        return simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="444"), repairs
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue(), repairs
