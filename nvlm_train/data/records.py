"""The json member of a sample: `{"turns": [{"role", "text"}, ...], "images": ["KEY.0.jpg", ...], ...}`.

Every other key is the sample's `meta`, carried along untouched for evaluation.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nvlm_train.contracts import Turn
from nvlm_train.errors import SampleRefused

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")     # an escape that may stand for one


@dataclass(frozen=True)
class Record:
    """images: names of the members that hold the pictures, in the order of the placeholders."""

    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    meta: Mapping


def read_record(data: bytes) -> Record:
    """Raises SampleRefused("bad_json") with what is wrong."""
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:    # not UTF-8, not JSON, a number of thousands of digits
        raise SampleRefused("bad_json", str(error)) from error
    if _HALF_PAIR.search(data) and not _encodable(content):
        raise SampleRefused("bad_json", "half of a surrogate pair, which is no character: neither a tokenizer nor a file takes it")
    turns = content.get("turns") if isinstance(content, dict) else None
    if not isinstance(turns, list) or not turns:
        raise SampleRefused("bad_json", 'no "turns": a sample is {"turns": [{"role": ..., "text": ...}], "images": [...]}')
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str) or not isinstance(turn.get("text"), str):
            raise SampleRefused("bad_json", f'a turn is {{"role": text, "text": text}}, found {str(turn)[:80]}')
    images = content.get("images", [])
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        raise SampleRefused("bad_json", f'"images" is a list of member names, found {str(images)[:80]}')
    meta = {key: value for key, value in content.items() if key not in ("turns", "images")}
    return Record(tuple(Turn(turn["role"], turn["text"]) for turn in turns), tuple(images), meta)


def _encodable(content: object) -> bool:
    try:
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def write_record(turns: Sequence[Turn], images: Sequence[str], meta: Mapping) -> bytes:
    """The json member, the same bytes for the same content. Raises ValueError if meta uses a reserved key."""
    reserved = {"turns", "images"} & set(meta)
    if reserved:
        raise ValueError(f"meta may not hold the keys {sorted(reserved)}")
    content = {**meta, "turns": [{"role": turn.role, "text": turn.text} for turn in turns], "images": list(images)}
    return json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8")
