"""Scene text with places, from the annotations of six datasets in their own forms."""

import json

import pytest
from convert_toys import convert, lay_out, picture, said
from PIL import Image

from data_prep.convert.text_boxes import Placed, in_reading_order
from nvlm_train.errors import DataError

SQUARE = picture(200, 100)

TEXTOCR = {
    "info": {"version": "0.1"},
    "imgs": {"a4ea732cd3d5948a": {"id": "a4ea732cd3d5948a", "width": 200, "height": 100, "set": "train",
                                  "file_name": "train/a4ea732cd3d5948a.jpg"},
             "b000": {"id": "b000", "width": 1024, "height": 768, "set": "train", "file_name": "train/b000.jpg"},
             "c000": {"id": "c000", "width": 200, "height": 100, "set": "val", "file_name": "train/c000.jpg"}},
    "anns": {
        "a4ea732cd3d5948a_2": {"id": "a4ea732cd3d5948a_2", "image_id": "a4ea732cd3d5948a", "bbox": [100.0, 52.0, 60.0, 20.0],
                               "utf8_string": "SALE", "points": [100.0, 52.0, 160.0, 56.0, 158.0, 72.0, 100.0, 70.0], "area": 1200.0},
        "a4ea732cd3d5948a_1": {"id": "a4ea732cd3d5948a_1", "image_id": "a4ea732cd3d5948a", "bbox": [20.0, 50.0, 50.0, 20.0],
                               "utf8_string": "Big", "points": [20.0, 50.0, 70.0, 50.0, 70.0, 70.0, 20.0, 70.0], "area": 1000.0},
        "a4ea732cd3d5948a_3": {"id": "a4ea732cd3d5948a_3", "image_id": "a4ea732cd3d5948a", "bbox": [10.0, 5.0, 10.0, 5.0],
                               "utf8_string": ".", "points": [10.0, 5.0, 20.0, 5.0, 20.0, 10.0, 10.0, 10.0], "area": 50.0},
        "a4ea732cd3d5948a_4": {"id": "a4ea732cd3d5948a_4", "image_id": "a4ea732cd3d5948a", "bbox": [50.0, 10.0, 170.0, 20.0],
                               "utf8_string": "TODAY", "points": [50, 10, 100, 12, 220, 20, 220, 30, 100, 28, 50, 25], "area": 900.0},
        "a4ea732cd3d5948a_5": {"id": "a4ea732cd3d5948a_5", "image_id": "a4ea732cd3d5948a", "bbox": [210.0, 10.0, 5.0, 5.0],
                               "utf8_string": "gone", "points": [210, 10, 215, 10, 215, 15, 210, 15], "area": 25.0},
        "b000_1": {"id": "b000_1", "image_id": "b000", "bbox": [0, 0, 9, 9], "utf8_string": "x", "points": [0, 0, 9, 0, 9, 9, 0, 9],
                   "area": 81},
        "c000_1": {"id": "c000_1", "image_id": "c000", "bbox": [0, 0, 9, 9], "utf8_string": ".", "points": [0, 0, 9, 0, 9, 9, 0, 9],
                   "area": 81}},
    "imgToAnns": {"a4ea732cd3d5948a": [f"a4ea732cd3d5948a_{number}" for number in range(1, 6)], "b000": ["b000_1"], "c000": ["c000_1"]},
}


@pytest.fixture
def textocr(tmp_path):
    return lay_out(tmp_path / "textocr", {"TextOCR_0.1_train.json": TEXTOCR,
                                          **{f"train_images/{name}.jpg": SQUARE for name in ("a4ea732cd3d5948a", "b000", "c000")}})


OPTIONS = {"format": "textocr", "annotations": "TextOCR_0.1_train.json", "images": "train_images"}


def test_golden_ocr_with_boxes(textocr):
    found = convert(textocr, "text_boxes", turns="ocr", **OPTIONS)
    assert list(found.samples) == ["toy-a4ea732cd3d5948a"] and found.only.images == (SQUARE,)
    answer = ("<ref>TODAY</ref><box>(250,100),(1000,300)</box><ref>Big</ref><box>(100,500),(350,700)</box>"
              "<ref>SALE</ref><quad>(500,520),(800,560),(790,720),(500,700)</quad>")
    assert said(found.only) == [("user", "<image>\nFind every piece of text in the picture, and give each with its box."),
                                ("assistant", answer)]
    assert found.only.meta == {"task": "ocr", "dataset": "toy", "form": "ocr", "texts": 3, "illegible": 1, "outside": 1,
                               "answers": [answer]}
    assert found.rejected == {"toy-b000": "size_mismatch", "toy-c000": "no_text"}
    assert found.details["toy-b000"] == "annotated at 1024x768, the picture is 200x100"


def test_golden_grounded_ocr(textocr):
    found = convert(textocr, "text_boxes", turns="grounded", where="set=train", **OPTIONS)
    assert said(found.only) == [
        ("user", "<image>\nGive the box of <ref>TODAY</ref>."), ("assistant", "<box>(250,100),(1000,300)</box>"),
        ("user", "Which text stands in the area <box>(100,500),(350,700)</box>?"), ("assistant", "Big"),
        ("user", "Give the box of <ref>SALE</ref>."), ("assistant", "<quad>(500,520),(800,560),(790,720),(500,700)</quad>")]
    assert found.rejected["toy-c000"] == "not_selected"


def test_at_most_so_many_regions(textocr):
    assert len(convert(textocr, "text_boxes", turns="grounded", regions=1, **OPTIONS).only.turns) == 2


def ocr(sample) -> str:
    return sample.turns[-1].text


def test_coco_text(tmp_path):
    root = lay_out(tmp_path / "coco", {"cocotext.v2.json": {
        "cats": {}, "info": {"version": "2.0"}, "imgToAnns": {"217925": [45346, 45347], "9": []},
        "imgs": {"217925": {"id": 217925, "set": "train", "width": 200, "file_name": "COCO_train2014_000000217925.jpg", "height": 100}},
        "anns": {"45346": {"mask": [20, 20, 60, 20, 60, 40, 20, 40], "class": "machine printed", "bbox": [20, 20, 40, 20],
                           "image_id": 217925,
                           "id": 45346, "language": "english", "area": 800, "utf8_string": "STOP", "legibility": "legible"},
                 "45347": {"mask": [80, 20, 90, 20, 90, 30, 80, 30], "class": "machine printed", "bbox": [80, 20, 10, 10],
                           "image_id": 217925,
                           "id": 45347, "language": "na", "area": 100, "utf8_string": "", "legibility": "illegible"}}},
        "train2014/COCO_train2014_000000217925.jpg": SQUARE})
    sample = convert(root, "text_boxes", format="coco_text", annotations="cocotext.v2.json", images="train2014", turns="ocr").only
    assert ocr(sample) == "<ref>STOP</ref><box>(100,200),(300,400)</box>" and sample.meta["illegible"] == 1


@pytest.mark.parametrize("format", ["art", "lsvt"])
def test_art_and_lsvt(tmp_path, format):
    labels = {"gt_0": [
        {"transcription": "MANDARIN", "points": [[20, 10], [60, 10], [100, 10], [100, 30], [60, 30], [20, 30]], "language": "Latin",
         "illegibility": False},
        {"transcription": "###", "points": [[0, 0], [9, 0], [9, 9], [0, 9]], "illegibility": True}]}
    root = lay_out(tmp_path / "icdar", {"train_labels.json": labels, "train_images/gt_0.jpg": SQUARE})
    found = convert(root, "text_boxes", format=format, annotations="train_labels.json", images="train_images", turns="ocr")
    assert list(found.samples) == ["toy-gt_0"] and ocr(found.only) == "<ref>MANDARIN</ref><box>(100,100),(500,300)</box>"


def test_rects(tmp_path):
    annotation = {"chars": [{"ignore": 0, "transcription": "北", "points": [20, 10, 40, 10, 40, 30, 20, 30]}],
                  "lines": [{"ignore": 0, "transcription": "北京", "points": [20, 10, 60, 10, 60, 30, 20, 30]},
                            {"ignore": 1, "transcription": "###", "points": [0, 50, 9, 50, 9, 59, 0, 59]}]}
    root = lay_out(tmp_path / "rects", {"gt/train_ReCTS_000001.json": json.dumps(annotation, ensure_ascii=False),
                                        "gt/train_ReCTS_000002.json": "{",
                                        "img/train_ReCTS_000001.jpg": SQUARE})
    found = convert(root, "text_boxes", format="rects", annotations="gt/*.json", images="img", turns="ocr")
    assert list(found.samples) == ["toy-gt-train_ReCTS_000001"] and ocr(found.only) == "<ref>北京</ref><box>(100,100),(300,300)</box>"
    assert found.rejected == {"toy-gt-train_ReCTS_000002": "bad_json"}


def test_rctw(tmp_path):
    lines = '\ufeff20,10,60,10,60,30,20,30,0,"ab,cd"\r\n100,50,140,55,138,70,99,66,1,"###"\r\n'
    root = lay_out(tmp_path / "rctw", {"train_gts/image_0.txt": lines, "train_gts/image_1.txt": "1,2,3\n",
                                       "train_gts/image_2.txt": b"\xb1\xb1", "train_gts/image_3.txt": lines,
                                       "train_images/image_0.jpg": SQUARE, "train_images/image_1.jpg": SQUARE})
    found = convert(root, "text_boxes", format="rctw", annotations="train_gts/*.txt", images="train_images", turns="ocr")
    assert list(found.samples) == ["toy-train_gts-image_0"] and ocr(found.only) == "<ref>ab,cd</ref><box>(100,100),(300,300)</box>"
    assert found.rejected == {"toy-train_gts-image_1": "bad_annotation", "toy-train_gts-image_2": "not_utf8",
                              "toy-train_gts-image_3": "missing_image"}


def test_the_key_chooses_the_form(tmp_path):
    labels = {f"gt_{number}": [{"transcription": "A", "points": [[20, 10], [60, 10], [60, 30], [20, 30]], "illegibility": False}]
              for number in range(40)}
    root = lay_out(tmp_path / "art", {"l.json": labels, **{f"i/gt_{number}.jpg": SQUARE for number in range(40)}})
    forms = [sample.meta["form"] for sample in convert(root, "text_boxes", format="art", annotations="l.json", images="i").samples.values()]
    assert len(forms) == 40 and 10 <= forms.count("ocr") <= 30


@pytest.mark.parametrize("text, points, reason", [
    ("<box>(1,1),(2,2)</box>", [[20, 10], [60, 10], [60, 30], [20, 30]], "markup_in_text"),
    ("<image>", [[20, 10], [60, 10], [60, 30], [20, 30]], "markup_in_text"),
    ("A", [[20, 10], [60, 10]], "bad_box"), ("A", [["x", 10], [60, 10], [1, 1]], "bad_box"), ("A", "none", "bad_box"),
    ("A", [[float("nan"), 10], [60, 10], [1, 1]], "bad_box")])
def test_bad_annotations_are_rejected(tmp_path, text, points, reason):
    good = [{"transcription": "A", "points": [[20, 10], [60, 10], [60, 30], [20, 30]], "illegibility": False}]
    root = lay_out(tmp_path / "art", {"l.json": {"gt_0": [{"transcription": text, "points": points, "illegibility": False}], "gt_1": good},
                                      "gt_0.jpg": SQUARE, "gt_1.jpg": SQUARE})
    found = convert(root, "text_boxes", format="art", annotations="l.json", turns="ocr")
    assert found.rejected == {"toy-gt_0": reason} and list(found.samples) == ["toy-gt_1"]


def test_pictures_that_exif_turns_are_rejected(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    good = [{"transcription": "A", "points": [[20, 10], [60, 10], [60, 30], [20, 30]], "illegibility": False}]
    root = lay_out(tmp_path / "art", {"l.json": {"gt_0": good, "gt_1": good}, "gt_0.jpg": picture(200, 100, kind="JPEG", exif=exif),
                                      "gt_1.jpg": SQUARE})
    found = convert(root, "text_boxes", format="art", annotations="l.json", turns="ocr")
    assert found.rejected == {"toy-gt_0": "turned_picture"}
    assert found.details["toy-gt_0"] == ("its EXIF orientation turns or mirrors it (stored as 200x100, shown as 100x200): "
                                              "boxes may mean either")


def test_another_form_is_an_error(tmp_path):
    root = lay_out(tmp_path / "art", {"l.json": {"imgs": {}}})
    for format in ("textocr", "art"):
        with pytest.raises(DataError, match=f"l.json is not in the form of {format}"):
            convert(root, "text_boxes", format=format, annotations="l.json")


def test_reading_order_is_by_lines():
    def at(text: str, x: int, y: int) -> Placed:
        return Placed(text, [(x, y), (x + 50, y), (x + 50, y + 40), (x, y + 40)])

    texts = [at("d", 100, 112), at("b", 300, 3), at("a", 10, 15), at("e", 400, 100), at("c", 10, 95)]
    assert [text.text for text in in_reading_order(texts)] == ["a", "b", "c", "d", "e"]
