"""Pages and their text: synthdog-en (https://github.com/clovaai/donut), in parquet files or as pictures beside a metadata.jsonl."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from data_prep.convert.base import OneSample, Paths
from data_prep.convert.fields import lookup, required, text
from data_prep.convert.turns import exchange
from data_prep.prompts import prompt
from nvlm_train.contracts import Sample
from nvlm_train.errors import SampleRefused

CHARACTERS = 4000   # about 1,000 tokens of English


@dataclass(frozen=True, kw_only=True)
class Transcription(OneSample):
    """A request for the text of a page, and the text.

    files: parquet, arrow or JSON lines. images: folders of pictures. image: field of the picture or its name. text: dotted path of the
    text, through JSON within text. max_characters: longer texts end at a word before it, and the prompt says so; 0: never.
    """

    FILES: ClassVar[str] = "files"
    TASK: ClassVar[str] = "transcription"

    files: Paths
    images: Paths = (".",)
    image: str = "image"
    text: str = "ground_truth.gt_parse.text_sequence"
    max_characters: int = CHARACTERS

    def needed(self) -> list[str]:
        return [path.partition(".")[0] for path in (self.id, self.image, self.text, "file_name") if path]

    def made(self, key: str, record: Mapping) -> Sample:
        value = lookup(record, self.image)
        pictures = self.pictures(lookup(record, "file_name") if value is None else value)
        if len(pictures) != 1:
            raise SampleRefused("missing_image", f"{len(pictures)} pictures in {self.image}, one is needed")
        pair, meta = transcript(key, text(through_json(record, self.text), self.text), self.max_characters)
        return self.sample(key, pictures, exchange([pair]), answers=[pair[1]], **meta)


def transcript(key: str, whole: str, limit: int) -> tuple[tuple[str, str], dict]:
    """The request and its answer, and what meta says of it."""
    shown = shortened(whole, limit)
    if shown == whole:
        return (prompt("transcription", key), whole), {"characters": len(whole)}
    return (prompt("transcription_start", key, characters=limit), shown), {"characters": len(whole), "cut_to": len(shown)}


def shortened(whole: str, limit: int) -> str:
    """As many whole words as fit `limit` characters; a first word that is longer than that is cut. 0: all."""
    if not limit or len(whole) <= limit:
        return whole
    if whole[limit].isspace():
        return whole[:limit].rstrip()
    end = max((place for place in range(limit) if whole[place].isspace()), default=limit)
    return whole[:end].rstrip()


def through_json(record: Any, path: str) -> Any:
    """As `lookup`, but text on the way is read as JSON. Raises SampleRefused: bad_json, missing_field."""
    value = record
    for part in path.split("."):
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (json.JSONDecodeError, RecursionError) as error:
                raise SampleRefused("bad_json", f"the text on the way to {path}: {error}") from error
        value = required(value, part)
    return value
