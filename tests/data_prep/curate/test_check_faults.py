"""`check` on what other people's data really holds: each fault is left out for its own reason, or repaired, and counted."""

import io

import numpy as np
import pytest
from curate_toys import asked, folder_of, png_header, raw_folder, read_all, reasons, record, scene, stored
from PIL import Image

from data_prep.curate.check import Check
from data_prep.curate.pictures import Pictures, check_picture
from data_prep.passes import Judged, run_pass
from nvlm_train.data.images import decode
from nvlm_train.errors import DataError, SampleRefused

GOOD = stored(scene(0), "JPEG", quality=90)


def checked(source, out):
    return run_pass("check", Judged(source, Check()), out)


def test_broken_members_are_left_out_each_for_its_reason(tmp_path):
    source = raw_folder(tmp_path / "in", {
        "good.json": record("<image>\nWhat?", "Bars.", "good.0.jpg"), "good.0.jpg": GOOD,
        "cut.json": record("What?", "Bars.", "cut.0.jpg"), "cut.0.jpg": GOOD[:len(GOOD) * 2 // 3],
        "hole.json": record("What?", "Bars.", "hole.0.jpg"), "hole.0.jpg": GOOD[:900] + bytes(200) + GOOD[1100:],
        "empty.json": record("What?", "Bars.", "empty.0.jpg"), "empty.0.jpg": b"",
        "html.json": record("What?", "Bars.", "html.0.jpg"), "html.0.jpg": b"<html><body>404 Not Found</body></html>",
        "nojson.0.jpg": GOOD,
        "badjson.json": b'{"turns": [',
        "latin.json": record("Where?", "Köln").decode("unicode_escape").encode("latin-1"),
        "half.json": record("What?", "x").replace(b'"x"', b'"\\ud83d"'),
        "pair.json": record("What?", "x").replace(b'"x"', b'"\\ud83d\\ude00"'),
        "absent.json": record("What?", "Bars.", "absent.0.jpg"),
    })
    manifest = checked(source, tmp_path / "out")
    assert reasons(tmp_path / "out") == {
        "cut": "broken_image", "hole": "broken_image", "empty": "broken_image", "html": "broken_image", "nojson": "missing_json",
        "badjson": "bad_json", "latin": "bad_json", "half": "bad_json", "absent": "missing_image"}
    assert manifest["in"] == 11 and manifest["kept"] == 2
    assert read_all(tmp_path / "out")["pair"].turns[1].text == "\N{GRINNING FACE}"
    assert read_all(tmp_path / "out")["good"].images == (GOOD,)


def test_a_damaged_shard_stops_the_pass_before_it_begins(tmp_path):
    source = folder_of(tmp_path / "in", [asked(f"k{n}", "What?", "Bars.", GOOD) for n in range(3)])
    shard = source / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"truncated: 3,000 bytes, its index says"):
        checked(source, tmp_path / "out")
    shard.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        checked(source, tmp_path / "out")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(30_000, 30_000), (12_000, 12_000)])
def test_a_bomb_is_refused_by_its_header(size):
    with pytest.raises(SampleRefused, match="image_too_large"):
        check_picture(png_header(*size), Pictures())


def test_the_cap_on_pixels_may_be_lowered_and_is_told_with_both_numbers():
    with pytest.raises(SampleRefused, match="96x64 is 6,144 pixels, the limit is 6,000"):
        check_picture(GOOD, Pictures(max_pixels=6000))


@pytest.mark.parametrize("size, reason", [((1, 1), "small_image"), ((20_000, 2), "small_image"), ((27, 100), "small_image"),
                                          ((281, 28), "long_image"), ((28, 290), "long_image")])
def test_shapes_that_no_tiling_serves(size, reason):
    with pytest.raises(SampleRefused) as caught:
        check_picture(stored(Image.new("RGB", size)), Pictures())
    assert caught.value.reason == reason and f"{size[0]}x{size[1]}" in caught.value.detail


def test_shapes_at_the_limits_are_kept():
    for size in ((28, 28), (280, 28)):
        data = stored(Image.new("RGB", size))
        assert check_picture(data, Pictures()) == (data, ())


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def _sixteen_bit() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65_535, 64 * 96).astype(np.uint16).reshape(64, 96))


def _transparent(mode: str) -> Image.Image:
    picture = scene(1).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    return picture.convert(mode)


REPAIRED = {
    "turned": stored(scene(1), "JPEG", quality=95, exif=_orientation(6)),
    "turned png": stored(scene(1), exif=_orientation(3)),
    "turned tiff": stored(scene(1), "TIFF", tiffinfo={0x0112: 8}),
    "cmyk": stored(scene(1).convert("CMYK"), "JPEG", quality=95),
    "sixteen_bit": stored(_sixteen_bit()),
    "alpha": stored(_transparent("RGBA")),
    "alpha of grey": stored(_transparent("LA")),
    "alpha of a palette": stored(scene(1).convert("P"), transparency=0),
}


@pytest.mark.parametrize("name", REPAIRED)
def test_what_is_repaired_shows_the_same_and_needs_no_second_repair(name):
    fixed, repairs = check_picture(REPAIRED[name], Pictures())
    assert repairs == (name.split()[0],)
    before, after = decode(REPAIRED[name]), decode(fixed)
    assert before.shape == after.shape
    if fixed[:3] == b"\xff\xd8\xff":    # bars of pure colour: hard edges are where a JPEG differs most
        assert np.abs(before.astype(int) - after).mean() < 2
    else:
        np.testing.assert_array_equal(before, after)
    assert check_picture(fixed, Pictures()) == (fixed, ())


def test_repairs_keep_the_kind_of_loss():
    assert check_picture(REPAIRED["turned"], Pictures())[0][:3] == b"\xff\xd8\xff"
    assert check_picture(REPAIRED["turned png"], Pictures())[0][:4] == b"\x89PNG"


def test_a_turned_picture_is_upright_afterwards():
    fixed, _ = check_picture(REPAIRED["turned"], Pictures())
    with Image.open(io.BytesIO(fixed)) as picture:
        assert picture.size == (64, 96) and picture.getexif().get(0x0112, 1) == 1
    expected = np.asarray(scene(1).rotate(-90, expand=True), dtype=int)
    assert np.abs(decode(fixed) - expected).mean() < 6


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_everything_else_keeps_its_bytes():
    kept = [stored(scene(2), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")]
    kept += [stored(scene(2).convert("L"), "JPEG"), stored(scene(2).convert("P")), stored(scene(2), "JPEG", exif=_orientation(1)),
             stored(scene(2), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7fgarbage"),
             stored(scene(2), "GIF", save_all=True, append_images=[scene(3)])]
    for data in kept:
        assert check_picture(data, Pictures()) == (data, ())


def test_repairs_are_counted_once_a_sample(tmp_path):
    samples = [asked("two", "<image><image>\nWhat?", "Bars.", REPAIRED["turned"], REPAIRED["turned png"]),
               asked("one", "What?", "Bars.", REPAIRED["alpha"]), asked("none", "What?", "Bars.", GOOD)]
    manifest = checked(folder_of(tmp_path / "in", samples), tmp_path / "out")
    assert manifest["repaired"] == {"alpha": 1, "turned": 1} and manifest["rejected"] == {}
