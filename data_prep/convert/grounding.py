"""Phrases and places: Visual Genome's region descriptions, and RefCOCO's referring expressions.

https://homes.cs.washington.edu/~ranjay/visualgenome/api.html and https://github.com/lichengunc/refer, whose refs come as a pickle: it has
to be turned into JSON elsewhere, as a pickle runs code when it is read.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from data_prep.convert import boxes, files
from data_prep.convert.base import Converter, Paths
from data_prep.convert.fields import text
from data_prep.convert.keys import key_of
from data_prep.convert.tables import Listed, Table
from data_prep.convert.turns import exchange
from data_prep.passes import Kept, Outcome
from data_prep.prompts import prompt
from nvlm_train.errors import DataError, SampleRefused


@dataclass(frozen=True, kw_only=True)
class Grounding(Converter):
    """A sample for each picture, of up to `regions` of its phrases, chosen by the key.

    format: visual_genome (region_descriptions.json) or refcoco (refs as JSON, with `instances`, the COCO file of their boxes).
    images: folders of pictures. turns: `referring` asks where a phrase is, `caption` what a place shows, `mixed` either, by the key.
    A phrase that stands for several places is never asked for.
    """

    TASK: ClassVar[str] = "grounding"

    format: Literal["visual_genome", "refcoco"]
    annotations: str
    instances: str = ""
    images: Paths = (".",)
    turns: Literal["mixed", "referring", "caption"] = "mixed"
    regions: int = 8

    def tables(self) -> list[Table]:
        path = files.find_one(self.root, self.annotations)
        if self.format == "visual_genome":
            return [Listed(path, partial(_visual_genome, path, *files.signature(path)), (path,))]
        instances = files.find_one(self.root, self.instances)
        load = partial(_refcoco, path, instances, *files.signature(path), *files.signature(instances))
        return [Listed(path, load, (path, instances))]

    def check(self) -> None:
        if (self.format == "refcoco") != bool(self.instances):
            raise DataError("grounding: format=refcoco needs the option instances (COCO's instances.json, which has the boxes); "
                            "visual_genome has none")
        if self.regions < 1:
            raise DataError(f"grounding: regions is at least 1, found {self.regions}")
        super().check()

    def key(self, table: Table, number: int, record: Mapping | None) -> str:
        return key_of(self.name, record["id"], *([record["split"]] if record.get("split") else []))

    def convert(self, key: str, record: Mapping) -> Iterator[Outcome]:
        if record["file_name"] is None:
            raise SampleRefused("unknown_image", f"the image {record['id']} is not in {self.instances}")
        picture = files.read_image(self.root, self.images, record["file_name"])
        size = boxes.frame(picture, record["size"])
        placed, skipped = _placed(record["phrases"], size)
        counts = Counter(phrase.lower() for phrase, _ in placed)
        usable = [pair for pair in placed if self.turns != "referring" or counts[pair[0].lower()] == 1]
        if not usable:
            raise SampleRefused("no_region", f"{len(record['phrases'])} phrases ({dict(skipped)}), none that can be asked for")
        chance = random.Random(f"regions/{key}")
        chosen = [usable[number] for number in sorted(chance.sample(range(len(usable)), min(self.regions, len(usable))))]
        pairs = []
        for place, (phrase, region) in enumerate(chosen):
            asks = self.turns == "referring" or (self.turns == "mixed" and counts[phrase.lower()] == 1 and chance.random() < 0.5)
            pairs.append(_referring(f"{key}/{place}", phrase, region) if asks else _caption(f"{key}/{place}", phrase, region))
        meta = {"image_id": record["id"], "phrases": len(record["phrases"]), "skipped": dict(skipped), "answers": [pairs[-1][1]]}
        yield Kept(self.sample(key, [picture], exchange(pairs), **meta))


def _placed(phrases: Sequence[tuple[Any, Any]], size: tuple[int, int]) -> tuple[list[tuple[str, str]], Counter]:
    """Phrases with their regions as text, each pair once, and how many others there are, by reason: one bad one costs no picture."""
    found, skipped = {}, Counter()
    for phrase, box in phrases:
        try:
            phrase = text(phrase, "a phrase")
            boxes.refuse_markup(phrase)
            points = boxes.scaled(_corners(box), size)
            if points is None:
                raise SampleRefused("outside")
            found[phrase, boxes.region(points)] = None
        except SampleRefused as refusal:
            skipped[refusal.reason] += 1
    return list(found), skipped


def _referring(key: str, phrase: str, region: str) -> tuple[str, str]:
    return prompt("referring", key, phrase=f"<ref>{phrase}</ref>"), region


def _caption(key: str, phrase: str, region: str) -> tuple[str, str]:
    return prompt("region_caption", key, region=region), phrase


def _corners(box: Any) -> boxes.Points:
    """Raises SampleRefused("bad_box")."""
    try:
        x, y, width, height = map(float, box)
    except (TypeError, ValueError, OverflowError) as error:
        raise SampleRefused("bad_box", f"x, y, width, height are four numbers, found {str(box)[:80]}") from error
    return boxes.paired([number for corner in boxes.rectangle(x, y, width, height) for number in corner])


@lru_cache(maxsize=1)
def _visual_genome(path: Path, size: int, changed: int) -> tuple[Mapping, ...]:
    try:
        return tuple({"id": image["id"], "file_name": f"{image['id']}.jpg", "size": None, "split": None,
                      "phrases": [(region["phrase"], [region[side] for side in ("x", "y", "width", "height")])
                                  for region in image["regions"]]} for image in files.load_json(path))
    except (TypeError, KeyError) as error:
        raise DataError(f"{path} is not Visual Genome's form ({error!r}): a list of id and `regions` of phrase, x, y, width, "
                        "height") from error


@lru_cache(maxsize=1)
def _refcoco(path: Path, instances: Path, *signatures: int) -> tuple[Mapping, ...]:
    """A record for each picture of each split: a picture's train and test phrases never meet."""
    refs, boxes_file = files.load_json(path), files.load_json(instances)
    try:
        images = {image["id"]: image for image in boxes_file["images"]}
        found = {annotation["id"]: annotation["bbox"] for annotation in boxes_file["annotations"]}
        records: dict = {}
        for ref in refs:
            image = images.get(ref["image_id"])
            size = (image["width"], image["height"]) if image else None
            record = records.setdefault((ref["image_id"], ref["split"]), {
                "id": ref["image_id"], "file_name": image["file_name"] if image else None, "size": size, "split": ref["split"],
                "phrases": []})
            record["phrases"] += [(sentence["sent"], found.get(ref["ann_id"])) for sentence in ref["sentences"]]
    except (TypeError, KeyError) as error:
        raise DataError(f"{path} and {instances} are not RefCOCO's form ({error!r}): a list of refs of image_id, ann_id, split and "
                        "sentences, and COCO's images and annotations") from error
    return tuple(records.values())
