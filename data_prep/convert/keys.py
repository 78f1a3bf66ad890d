"""Keys of samples: `NAME-ID`, of characters that any tar and any file system holds, unique and the same every time."""

import hashlib
import re

from data_prep.shards import LONGEST_KEY

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_DIGEST = 10    # hex digits that tell apart what sanitising or shortening would make alike


def key_of(name: str, *parts: object) -> str:
    """`NAME-PART-PART`. What a key may not hold becomes `_`; a key that this changes, or that is too long, ends in a digest of all.

    So different parts give different keys: `a.b` becomes `NAME-a_b-2d5f…`, which no part that is already plain gives.
    """
    plain = "-".join(str(part) for part in (name, *parts))
    clean = _UNSAFE.sub("_", plain)
    if clean == plain and len(clean) <= LONGEST_KEY:
        return clean
    digest = hashlib.sha256("\0".join(str(part) for part in (name, *parts)).encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{clean[:LONGEST_KEY - _DIGEST - 1]}-{digest}"
