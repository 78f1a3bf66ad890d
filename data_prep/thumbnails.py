"""Small pictures for pages that link to no other file."""

import base64
import io

from PIL import Image

from nvlm_train.data.images import decode

QUALITY = 85


def thumbnail(data: bytes, side: int) -> str:
    """A picture as training sees it, at most `side` pixels long, as the data URL of a JPEG. Raises SampleRefused as `decode`."""
    picture = Image.fromarray(decode(data))
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
