"""Visual Genome's region descriptions, and RefCOCO's referring expressions as JSON."""

import pytest
from convert_toys import convert, lay_out, picture, said

from nvlm_train.errors import DataError

SQUARE = picture(200, 100)


def region(number: int, phrase: str, x: int, y: int, width: int, height: int) -> dict:
    return {"region_id": number, "width": width, "height": height, "image_id": 1, "phrase": phrase, "y": y, "x": x}


REGIONS = [{"id": 1, "regions": [region(1382, "the clock is green in colour", 20, 10, 40, 30),
                                 region(1383, "a shade tree", 100, 0, 120, 50),
                                 region(1384, "a car", 0, 50, 50, 50), region(1385, "A car", 60, 50, 50, 50),
                                 region(1386, "beyond", 300, 50, 50, 50)]},
           {"id": 2, "regions": []}, {"id": 3, "regions": [region(1, "x", 0, 0, 9, 9)]}]


@pytest.fixture
def genome(tmp_path):
    return lay_out(tmp_path / "vg", {"region_descriptions.json": REGIONS, "VG_100K/2.jpg": SQUARE, "VG_100K_2/1.jpg": SQUARE})


OPTIONS = {"format": "visual_genome", "annotations": "region_descriptions.json", "images": ["VG_100K", "VG_100K_2"]}


def test_golden_regions(genome):
    found = convert(genome, "grounding", **OPTIONS)
    assert list(found.samples) == ["toy-1"] and found.only.images == (SQUARE,)
    assert said(found.only) == [
        ("user", "<image>\nWhat is at <box>(100,100),(300,400)</box>?"), ("assistant", "the clock is green in colour"),
        ("user", "Say in a few words what the area <box>(500,0),(1000,500)</box> shows."), ("assistant", "a shade tree"),
        ("user", "Describe the part of the picture inside <box>(0,500),(250,1000)</box>."), ("assistant", "a car"),
        ("user", "Say in a few words what the area <box>(300,500),(550,1000)</box> shows."), ("assistant", "A car")]
    assert found.only.meta == {"task": "grounding", "dataset": "toy", "image_id": 1, "phrases": 5, "skipped": {"outside": 1},
                               "answers": ["A car"]}
    assert found.rejected == {"toy-2": "no_region", "toy-3": "missing_image"}


def test_phrases_of_several_places_are_not_asked_for(genome):
    sample = convert(genome, "grounding", turns="referring", **OPTIONS).only
    assert [turn.text for turn in sample.turns if turn.role == "assistant"] == ["<box>(100,100),(300,400)</box>",
                                                                                "<box>(500,0),(1000,500)</box>"]
    assert "<ref>the clock is green in colour</ref>" in sample.turns[0].text


def test_a_bad_phrase_costs_no_picture(tmp_path):
    bad = [region(1, "", 0, 0, 9, 9), region(2, "<box>", 0, 0, 9, 9), region(3, "a", float("nan"), 0, 9, 9), region(4, "b", "x", 0, 9, 9),
           region(5, "good", 20, 10, 40, 30), region(6, 7, 1e308, 1e308, 1e308, 9), region(7, None, 0, 0, 9, 9), region(8, "c", 0, 0, 0, 9)]
    root = lay_out(tmp_path / "vg", {"r.json": [{"id": 1, "regions": bad}], "1.jpg": SQUARE})
    sample = convert(root, "grounding", format="visual_genome", annotations="r.json", turns="caption").only
    assert sample.turns[1].text == "good" and len(sample.turns) == 2
    assert sample.meta["skipped"] == {"empty_text": 2, "markup_in_text": 1, "bad_box": 3, "outside": 1}


REFS = [
    {"sent_ids": [0, 1], "file_name": "COCO_train2014_000000581857_16.jpg", "ann_id": 1719310, "ref_id": 0, "image_id": 581857,
     "split": "train", "category_id": 1, "sentences": [
         {"tokens": ["the", "lady"], "raw": "THE LADY", "sent_id": 0, "sent": "the lady"},
         {"tokens": ["lady", "in", "blue"], "raw": "lady in blue", "sent_id": 1, "sent": "lady in blue"}]},
    {"sent_ids": [2], "file_name": "COCO_train2014_000000581857_17.jpg", "ann_id": 1719311, "ref_id": 1, "image_id": 581857,
     "split": "testA", "category_id": 1, "sentences": [{"tokens": ["man"], "raw": "man", "sent_id": 2, "sent": "man"}]},
]
INSTANCES = {"images": [{"license": 1, "file_name": "COCO_train2014_000000581857.jpg", "width": 200, "height": 100, "id": 581857}],
             "annotations": [{"bbox": [20.5, 10.0, 40.0, 30.0], "image_id": 581857, "id": 1719310, "category_id": 1, "iscrowd": 0}],
             "categories": [{"id": 1, "name": "person"}]}


def test_refcoco(tmp_path):
    root = lay_out(tmp_path / "refcoco", {"refs.json": REFS, "instances.json": INSTANCES,
                                          "train2014/COCO_train2014_000000581857.jpg": SQUARE})
    found = convert(root, "grounding", format="refcoco", annotations="refs.json", instances="instances.json", images="train2014",
                    turns="referring", where="split=train")
    assert list(found.samples) == ["toy-581857-train"] and found.rejected == {"toy-581857-testA": "not_selected"}
    assert [turn.text for turn in found.only.turns if turn.role == "assistant"] == ["<box>(103,100),(303,400)</box>"] * 2
    everything = convert(root, "grounding", format="refcoco", annotations="refs.json", instances="instances.json", images="train2014")
    assert everything.rejected == {"toy-581857-testA": "no_region"} and "bad_box" in everything.details["toy-581857-testA"]


def test_pickled_refs_are_refused_unread(tmp_path):
    root = lay_out(tmp_path / "refcoco", {"refs(unc).p": b"cos\nsystem\n(S'false'\ntR.", "instances.json": INSTANCES})
    with pytest.raises(DataError, match="pickle runs code of whoever made it"):
        convert(root, "grounding", format="refcoco", annotations="refs(unc).p", instances="instances.json")


def test_refcoco_needs_the_boxes(tmp_path):
    root = lay_out(tmp_path / "refcoco", {"refs.json": REFS})
    with pytest.raises(DataError, match="format=refcoco needs the option instances"):
        convert(root, "grounding", format="refcoco", annotations="refs.json")
