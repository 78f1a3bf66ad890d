"""synthdog-en, as parquet and as a folder of pictures; where long texts end."""

import json

import pyarrow as pa
import pytest
from convert_toys import convert, lay_out, picture, said
from pyarrow import parquet

from data_prep.convert.transcription import shortened

PAGE = picture(60, 80, "white", "JPEG")
TRUTH = json.dumps({"gt_parse": {"text_sequence": "In the beginning the universe was created. "}})


def test_golden_parquet(tmp_path):
    root = tmp_path / "synthdog"
    root.mkdir()
    rows = [{"image": {"bytes": PAGE, "path": "image_0.jpg"}, "ground_truth": TRUTH},
            {"image": {"bytes": PAGE, "path": None}, "ground_truth": "{"},
            {"image": None, "ground_truth": TRUTH}, {"image": {"bytes": PAGE, "path": None}, "ground_truth": '{"gt_parse": {}}'}]
    parquet.write_table(pa.Table.from_pylist(rows), root / "train-00000-of-00084.parquet")
    found = convert(root, "transcription", files="train-*.parquet")
    assert list(found.samples) == ["toy-train-00000-of-00084-0"] and found.only.images == (PAGE,)
    assert said(found.only) == [("user", "<image>\nCopy the text of this page word for word."),
                                ("assistant", "In the beginning the universe was created.")]
    assert found.only.meta == {"task": "transcription", "dataset": "toy", "characters": 42, "answers": [found.only.turns[1].text]}
    assert list(found.rejected.values()) == ["bad_json", "missing_image", "missing_field"]


def test_folder_with_metadata(tmp_path):
    root = lay_out(tmp_path / "synthdog", {"train/metadata.jsonl": [{"file_name": "image_0.jpg", "ground_truth": TRUTH}],
                                           "train/image_0.jpg": PAGE})
    found = convert(root, "transcription", files="train/metadata.jsonl", images="train", max_characters=20)
    assert found.only.images == (PAGE,) and found.only.turns[1].text == "In the beginning the"
    assert "20 characters" in found.only.turns[0].text and found.only.meta["cut_to"] == 20 and found.only.meta["characters"] == 42


@pytest.mark.parametrize("whole, limit, shown", [
    ("one two", 0, "one two"), ("one two", 7, "one two"), ("one two", 6, "one"), ("one two", 4, "one"), ("one two", 3, "one"),
    ("one two", 2, "on"), ("one\n\ntwo three", 9, "one\n\ntwo"), ("one  two", 5, "one")])
def test_text_ends_at_a_word(whole, limit, shown):
    assert shortened(whole, limit) == shown
