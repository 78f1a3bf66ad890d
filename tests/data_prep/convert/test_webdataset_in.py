"""Tars of others: img2dataset's pairs, pdfa-eng-wds's pages; damaged and unsafe tars."""

import io
import json
import tarfile

import pytest
from convert_toys import convert, picture, said

from nvlm_train.errors import DataError

RED, BLUE, PAGE = picture(kind="JPEG"), picture(color="blue", kind="JPEG"), picture(60, 80, "white", "TIFF")
PDFA = {"pages": [{"words": {"text": ["AMENDED", "AND", "RESTATED", "It", "is"], "bbox": [[0.1, 0.1, 0.1, 0.02]] * 5, "score": [1.0] * 5,
                             "line_pos": [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]},
                   "lines": {"text": ["AMENDED AND RESTATED", " ", "It is"], "bbox": [[0.1, 0.1, 0.5, 0.02]] * 3, "score": [1.0] * 3,
                             "word_slice": [[0, 3], [3, 3], [3, 5]]},
                   "images_bbox": [], "images_bbox_no_text_overlap": []}]}


def write_tar(path, members: dict, kind: bytes = tarfile.REGTYPE):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            data = data if isinstance(data, bytes) else json.dumps(data).encode()
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data) if kind == tarfile.REGTYPE else 0, kind
            tar.addfile(info, io.BytesIO(data) if kind == tarfile.REGTYPE else None)
    return path.parent


IMG2DATASET = {
    "000000000.jpg": RED, "000000000.txt": b"a red flag \n",
    "000000000.json": {"caption": "a red flag ", "status": "success", "key": "000000000"},
    "000000001.json": {"caption": "gone", "status": "failed_to_download", "key": "000000001"}, "000000001.txt": b"gone",
    "000000002.jpg": BLUE, "000000002.txt": b"  ", "000000003.jpg": BLUE, "000000004.jpg": RED, "000000004.txt": b"caf\xe9",
    "000000005.JPG": BLUE, "000000005.txt": b"blau",
}


def test_golden_pairs(tmp_path):
    root = write_tar(tmp_path / "cc3m" / "00000.tar", IMG2DATASET)
    found = convert(root, "webdataset", tars="*.tar", image="jpg", text="txt")
    first, upper = found.samples.values()
    assert (first.key, upper.key, upper.turns[1].text) == ("toy-00000-000000000", "toy-00000-000000005", "blau")
    assert said(first) == [("user", "<image>\nWrite a caption for this picture."), ("assistant", "a red flag")]
    assert first.images == (RED,) and first.meta == {"task": "captioning", "dataset": "toy", "answers": ["a red flag"]}
    assert found.rejected == {"toy-00000-000000001": "missing_image", "toy-00000-000000002": "empty_text",
                              "toy-00000-000000003": "missing_text", "toy-00000-000000004": "not_utf8"}


def test_the_caption_may_be_in_the_json(tmp_path):
    root = write_tar(tmp_path / "cc3m" / "00000.tar", {name: data for name, data in IMG2DATASET.items() if "000000" in name[:9]})
    found = convert(root, "webdataset", tars="00000.tar", text="json", field="caption")
    assert found.samples["toy-00000-000000000"].turns[1].text == "a red flag"


def test_pages(tmp_path):
    root = write_tar(tmp_path / "pdfa" / "pdfa-eng-train-000000.tar", {
        "0012345.tif": PAGE, "0012345.json": PDFA, "0012345.pdf": b"%PDF-1.4", "0099.json": b"{broken", "0099.png": picture(),
        "7.0.png": picture(), "7.1.png": picture(color="blue"), "7.json": {"pages": PDFA["pages"] * 2},
        "8.0.png": picture(), "8.1.png": picture(), "8.json": PDFA})
    found = convert(root, "webdataset", tars="*.tar", text="json", field="pages", style="transcription")
    page = found.samples["toy-pdfa-eng-train-000000-0012345"]
    assert said(page) == [("user", "<image>\nWrite out all the text on this page."), ("assistant", "AMENDED AND RESTATED\nIt is")]
    assert page.images == (PAGE,) and page.meta == {"task": "transcription", "dataset": "toy", "characters": 26,
                                                    "answers": [page.turns[1].text]}
    assert found.samples["toy-pdfa-eng-train-000000-7-1"].images == (picture(color="blue"),)
    assert found.rejected == {"toy-pdfa-eng-train-000000-0099": "bad_json", "toy-pdfa-eng-train-000000-8": "page_mismatch"}


def test_long_pages_end_at_a_word(tmp_path):
    root = write_tar(tmp_path / "pdfa" / "a.tar", {"0.tif": PAGE, "0.json": PDFA})
    sample = convert(root, "webdataset", tars="a.tar", text="json", field="pages", style="transcription", max_characters=10).only
    assert sample.turns[1].text == "AMENDED" and "10 characters" in sample.turns[0].text and sample.meta["cut_to"] == 7


@pytest.mark.distributed
def test_a_tar_is_a_unit(tmp_path):
    for number in range(3):
        root = write_tar(tmp_path / "many" / f"{number:05d}.tar", {"0.jpg": RED, "0.txt": f"caption {number}".encode()})
    found = convert(root, "webdataset", 2, tars="*.tar")
    assert [sample.turns[1].text for sample in found.samples.values()] == ["caption 0", "caption 1", "caption 2"]
    assert found.manifest["units"] == 3


@pytest.mark.parametrize("keep", [0, 700, 1024, 2000, 2600], ids=lambda keep: f"{keep} bytes")
def test_a_truncated_tar_is_an_error(tmp_path, keep):
    root = write_tar(tmp_path / "cut" / "00000.tar", {"0.txt": b"x", "0.jpg": RED})
    path = root / "00000.tar"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="00000.tar"):
        convert(root, "webdataset", tars="*.tar")


@pytest.mark.parametrize("name", ["0.pkl", "0.pickle", "0.pth", "0.pyd", "model.PT"])
def test_what_others_would_run_is_refused(tmp_path, name):
    root = write_tar(tmp_path / "bad" / "00000.tar", {"0.jpg": RED, "0.txt": b"x", name: b"\x80\x04N."})
    with pytest.raises(DataError, match="might run or unpickle"):
        convert(root, "webdataset", tars="*.tar")


@pytest.mark.parametrize("name", ["../0.jpg", "/0.jpg", "a/../../0.jpg"])
def test_names_that_climb_are_refused(tmp_path, name):
    root = write_tar(tmp_path / "bad" / "00000.tar", {name: RED})
    with pytest.raises(DataError, match="climbs out of its folder"):
        convert(root, "webdataset", tars="*.tar")


def test_links_are_refused(tmp_path):
    root = write_tar(tmp_path / "bad" / "00000.tar", {"0.jpg": b""}, tarfile.SYMTYPE)
    with pytest.raises(DataError, match="a link, device or sparse file"):
        convert(root, "webdataset", tars="*.tar")
