"""COCO captions, in the form of captions_train2017.json."""

import pytest
from convert_toys import convert, lay_out, picture, said

from nvlm_train.errors import DataError

CAPTIONS = {
    "info": {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017},
    "licenses": [{"url": "http://creativecommons.org/licenses/by-nc-sa/2.0/", "id": 1,
                  "name": "Attribution-NonCommercial-ShareAlike License"}],
    "images": [
        {"license": 1, "file_name": "000000391895.jpg", "height": 20, "width": 40, "date_captured": "2013-11-14 11:18:45", "id": 391895},
        {"license": 1, "file_name": "000000522418.jpg", "height": 20, "width": 40, "date_captured": "2013-11-14 11:38:44", "id": 522418},
        {"license": 1, "file_name": "000000000007.jpg", "height": 20, "width": 40, "date_captured": "2013-11-14 11:38:44", "id": 7},
    ],
    "annotations": [
        {"image_id": 391895, "id": 770337, "caption": "A man with a red helmet on a small moped on a dirt road. "},
        {"image_id": 522418, "id": 681330, "caption": "A woman cutting cake."},
        {"image_id": 391895, "id": 771687, "caption": "Man riding a motor bike."},
        {"image_id": 99, "id": 1, "caption": "Nobody knows this picture."},
    ],
}


@pytest.fixture
def root(tmp_path):
    return lay_out(tmp_path / "coco", {"annotations/captions_train2017.json": CAPTIONS,
                                       "train2017/000000391895.jpg": picture(kind="JPEG"),
                                       "train2017/000000522418.jpg": b"<html>404</html>"})


OPTIONS = {"annotations": "annotations/captions_train2017.json", "images": "train2017"}


def test_golden_sample(root):
    found = convert(root, "coco_captions", captions="first", **OPTIONS)
    assert list(found.samples) == ["toy-391895"]
    assert said(found.only) == [("user", "<image>\nGive this photo a short, factual caption."),
                                ("assistant", "A man with a red helmet on a small moped on a dirt road.")]
    assert found.only.images == (picture(kind="JPEG"),)
    assert found.only.meta == {"task": "captioning", "dataset": "toy", "image_id": 391895, "answers": [
        "A man with a red helmet on a small moped on a dirt road.", "Man riding a motor bike."]}
    assert found.rejected == {"toy-522418": "broken_image", "toy-7": "no_caption", "toy-99": "unknown_image"}


def test_all_captions_are_a_sample_each(root):
    found = convert(root, "coco_captions", captions="all", **OPTIONS)
    assert {key: sample.turns[1].text for key, sample in found.samples.items()} == {
        "toy-391895-0": "A man with a red helmet on a small moped on a dirt road.", "toy-391895-1": "Man riding a motor bike."}


def test_the_key_chooses_the_caption(tmp_path):
    many = {"images": [{"id": number, "file_name": "a.png"} for number in range(40)],
            "annotations": [{"image_id": number, "id": 2 * number + side,
                             "caption": f"side {side}"} for number in range(40) for side in (0, 1)]}
    root = lay_out(tmp_path / "coco", {"a.json": many, "a.png": picture()})
    chosen = [sample.turns[1].text for sample in convert(root, "coco_captions", annotations="a.json").samples.values()]
    assert 10 <= chosen.count("side 0") <= 30 and len(chosen) == 40
    assert chosen == [sample.turns[1].text for sample in convert(root, "coco_captions", annotations="a.json").samples.values()]


def test_another_form_is_refused(tmp_path):
    root = lay_out(tmp_path / "coco", {"a.json": {"images": [{"name": "a.png"}], "annotations": []}})
    with pytest.raises(DataError, match="a.json is not COCO's form .KeyError.'id'"):
        convert(root, "coco_captions", annotations="a.json")
