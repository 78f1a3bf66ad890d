"""COCO captions: `images` and `annotations` of captions_train2017.json and its like (https://cocodataset.org/#format-data)."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar, Literal

from data_prep.convert import files
from data_prep.convert.base import Converter, Paths, outcome
from data_prep.convert.fields import required, required_text
from data_prep.convert.keys import key_of
from data_prep.convert.tables import Listed, Table
from data_prep.convert.turns import exchange
from data_prep.passes import Outcome
from data_prep.prompts import prompt
from nvlm_train.contracts import Sample
from nvlm_train.errors import DataError, SampleRefused


@dataclass(frozen=True, kw_only=True)
class CocoCaptions(Converter):
    """A request for a caption, and the caption.

    annotations: the JSON file. images: folders of pictures. captions: which of an image's captions; `all` makes a sample of each.
    """

    TASK: ClassVar[str] = "captioning"

    annotations: str
    images: Paths = (".",)
    captions: Literal["random", "first", "all"] = "random"

    def tables(self) -> list[Table]:
        path = files.find_one(self.root, self.annotations)
        return [Listed(path, partial(_by_image, path, *files.signature(path)), (path,))]

    def key(self, table: Table, number: int, record: Mapping | None) -> str:
        return key_of(self.name, record["id"])

    def convert(self, key: str, record: Mapping) -> Iterator[Outcome]:
        if record["image"] is None:
            raise SampleRefused("unknown_image", f"{len(record['captions'])} captions of the image {record['id']}, which is not listed")
        if not record["captions"]:
            raise SampleRefused("no_caption", f"the image {record['id']} has no caption")
        if self.captions == "all":
            for place, caption in enumerate(record["captions"]):
                own = key_of(key, place)
                yield outcome(own, lambda own=own, caption=caption: self._sample(own, record, caption))
            return
        chosen = record["captions"][0]
        if self.captions == "random":
            chosen = random.Random(f"caption/{key}").choice(record["captions"])
        yield outcome(key, lambda: self._sample(key, record, chosen))

    def _sample(self, key: str, record: Mapping, caption: Mapping) -> Sample:
        picture = files.read_image(self.root, self.images, required(record["image"], "file_name"))
        turns = exchange([(prompt("captioning", key), required_text(caption, "caption"))])
        captions = [str(other.get("caption", "")).strip() for other in record["captions"]]
        return self.sample(key, [picture], turns, answers=captions, image_id=record["id"])


@lru_cache(maxsize=1)
def _by_image(path: Path, size: int, changed: int) -> tuple[Mapping, ...]:
    """{id, image, captions} of every image in order, then of images that only captions name."""
    content = files.load_json(path)
    try:
        images = {image["id"]: image for image in content["images"]}
        captions: dict = {number: [] for number in images}
        for annotation in content["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation)
    except (TypeError, KeyError) as error:
        raise DataError(f"{path} is not COCO's form ({error!r}): an object with `images` of id and file_name, and `annotations` of "
                        "image_id and caption") from error
    return tuple({"id": number, "image": images.get(number), "captions": own} for number, own in captions.items())
