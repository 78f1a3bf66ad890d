"""`decontaminate`: questions, pictures and pairs of a benchmark are found in training data, told pair by pair, and left out there."""

import json
import shutil

import pytest
from curate_toys import LONG, asked, folder_of, raw_folder, read_all, reasons, record, scene, stored
from PIL import Image

from data_prep.__main__ import main
from data_prep.curate.benchmark_index import Overlap
from data_prep.curate.benchmarks import Reading, items_of
from data_prep.curate.decontaminate import decontaminate
from nvlm_train.errors import DataError

QUESTION = "How many of the seven blue bars on the left are longer than the red bar in the middle of the chart?"
ONE, OTHER = scene(1, 200, 150), scene(2, 200, 150)


def benchmark(tmp_path, samples=None):
    samples = samples or [asked("q1", QUESTION, "three"), asked("q2", "<image>\nWhat colour is it?", "red", stored(ONE))]
    return folder_of(tmp_path / "bench", samples)


def cleaned(tmp_path, samples, against=None, **limits):
    out = tmp_path / "out"
    against = against or [benchmark(tmp_path)]
    before = {path: path.read_bytes() for folder in against for path in folder.rglob("*") if path.is_file()}
    manifest = decontaminate(folder_of(tmp_path / "in", samples, 3), out, against, Overlap(**limits))
    assert {path: path.read_bytes() for folder in against for path in folder.rglob("*") if path.is_file()} == before
    assert manifest["in"] == len(samples) == manifest["kept"] + sum(manifest["rejected"].values())
    return reasons(out), [json.loads(line) for line in (tmp_path / "out.decontaminate/matches.jsonl").read_text().splitlines()]


def report(tmp_path):
    return json.loads((tmp_path / "out.decontaminate/report.json").read_text())


def test_a_question_inside_a_longer_text_is_found(tmp_path):
    left_out, matches = cleaned(tmp_path, [
        asked("verbatim", QUESTION, "three"), asked("inside", f"Read this. {QUESTION.upper().replace('?', ' !')} Answer.", "x"),
        asked("answer", "Repeat.", QUESTION),
        asked("part", "So: how many of the seven blue bars on the left are longer than others?", "x"),
        asked("short part", "How many of the seven blue bars are red?", "x"), asked("split", QUESTION[:50], QUESTION[50:])])
    assert left_out == {key: "benchmark_text" for key in ("verbatim", "inside", "answer", "part")}
    shares = {match["key"]: match["share"] for match in matches}
    assert shares["verbatim"] == shares["inside"] == 1 and 0 < shares["part"] < 0.3
    assert matches[0] == {"shard": "shard-000000", "key": "answer", "reason": "benchmark_text", "benchmark": "bench", "item": "q1",
                          "share": 1.0, "text": f"{QUESTION} three"}


def test_a_larger_share_may_be_asked_for(tmp_path):
    samples = [asked("verbatim", QUESTION, "x"), asked("part", "how many of the seven blue bars on the left are longer than", "x")]
    assert cleaned(tmp_path, samples, share=0.5)[0] == {"verbatim": "benchmark_text"}


def test_texts_of_eight_words_are_compared_whole_and_shorter_ones_are_told(tmp_path):
    bench = raw_folder(tmp_path / "words", {"eight.json": record("what stands in the middle of that street?", "a tree"),
                                            "seven.json": record("what lies under the old bridge?", "a boat")})
    samples = [asked("a", "Tell me: what stands in the middle of that street", "x"), asked("b", "what lies under the old bridge?", "x"),
               asked("c", "what stands in the middle of that house", "x")]
    assert cleaned(tmp_path, samples, [bench])[0] == {"a": "benchmark_text"}
    assert report(tmp_path)["benchmarks"]["cannot_be_matched"] == 1


def test_a_short_question_about_a_picture_counts_with_its_picture_only(tmp_path):
    bench = benchmark(tmp_path, [asked("q", "<image>\nWhat is the colour of the bar on the left?", "red", stored(ONE))])
    samples = [asked("elsewhere", "What is the colour of the bar on the left?", "blue", stored(OTHER)),
               asked("there", "What is the colour of the bar on the left?", "red", stored(ONE))]
    assert cleaned(tmp_path, samples, [bench])[0] == {"there": "benchmark_pair"}


def test_forms_of_words_that_many_entries_share_do_not_count(tmp_path):
    form = "Look at the picture and answer the question with the letter of the right choice only"
    bench = benchmark(tmp_path, [asked(f"q{n}", f"{form}: is it number {n}?", "A") for n in range(12)])
    samples = [asked("form", f"{form}. What is it?", "B"), asked("entry", f"{form}: is it number 7?", "A")]
    assert cleaned(tmp_path, samples, [bench])[0] == {"entry": "benchmark_text"}
    assert report(tmp_path)["benchmarks"]["common_runs"] == 7     # of 13 words in the 19 before the number


def test_pictures_are_found_recompressed_resized_and_cropped(tmp_path):
    samples = [asked("same", "a?", "x", stored(ONE)), asked("jpeg", "b?", "x", stored(ONE, "JPEG", quality=40)),
               asked("small", "c?", "x", stored(ONE.resize((80, 60)))), asked("centre", "d?", "x", stored(ONE.crop((20, 15, 180, 135)))),
               asked("trimmed", "d?", "x", stored(ONE.crop((10, 8, 190, 142)))),
               asked("framed", "e?", "x", stored(_framed(ONE))), asked("other", "f?", "x", stored(OTHER)),
               asked("second", "g?", "x", stored(OTHER), stored(ONE))]
    left_out, matches = cleaned(tmp_path, samples)
    assert left_out == {key: "benchmark_image" for key in ("same", "jpeg", "small", "centre", "trimmed", "framed", "second")}
    assert {match["key"]: match["image"] for match in matches}["second"] == 1 and max(match["bits"] for match in matches) <= 8


def _framed(picture: Image.Image) -> Image.Image:
    framed = Image.new("RGB", (picture.width * 5 // 4, picture.height * 5 // 4), "white")
    framed.paste(picture, (picture.width // 8, picture.height // 8))
    return framed


def test_the_question_about_the_picture_is_the_graver_match(tmp_path):
    samples = [asked("pair", "<image>\nWhat colour is it? Answer with one word.", "red", stored(ONE, "JPEG")),
               asked("asked otherwise", "What is that colour?", "red", stored(ONE)),
               asked("asked elsewhere", "What colour is it?", "red", stored(OTHER))]
    left_out, matches = cleaned(tmp_path, samples)
    assert left_out == {"pair": "benchmark_pair", "asked otherwise": "benchmark_image"}
    assert matches[0]["reason"] == "benchmark_pair" and matches[0]["question"] == "\nWhat colour is it?"


def test_pictures_with_other_questions_may_be_reported_only(tmp_path):
    samples = [asked("pair", "What colour is it?", "red", stored(ONE)), asked("otherwise", "How many bars?", "12", stored(ONE))]
    left_out, matches = cleaned(tmp_path, samples, images="report")
    assert left_out == {"pair": "benchmark_pair"} and {match["key"] for match in matches} == {"pair", "otherwise"}
    assert set(read_all(tmp_path / "out")) == {"otherwise"}


def test_a_page_shows_pairs_of_pictures_and_escapes_text(tmp_path):
    bench = benchmark(tmp_path, [asked("q1", f"<script>alert(1)</script> {QUESTION}", "x", stored(ONE))])
    cleaned(tmp_path, [asked("a", QUESTION, "x", stored(ONE)), asked("b", "x", "y")], [bench])
    page = (tmp_path / "out.decontaminate/matches.html").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 2 and "&lt;script&gt;" in page and "<script>" not in page
    assert "1 of 1 pairs" in page and "http" not in page


def test_benchmarks_in_files(tmp_path):
    folder = tmp_path / "files"
    (folder / "images").mkdir(parents=True)
    for name in ("COCO_val_000000000042.png", "b.png", "alone.png"):
        (folder / "images" / name).write_bytes(stored(ONE))
    rows = [{"question_id": 7, "question": "a\u2028b", "image_id": 42}, {"prompt": "c", "image": "images/b.png"},
            {"text": "d", "image": "gone.jpg"}]
    (folder / "1.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    (folder / "2.json").write_text(json.dumps({"info": {}, "questions": [{"question": "e", "image": ["b", "images/alone.png"]}]}))
    (folder / "3.json").write_text(json.dumps({"p1": {"problem": "f"}, "p2": {"problem": "g"}}))
    (folder / "4.csv").write_text('id,question,image\n1,"two\nlines",b.png\n')
    (folder / "5.tsv").write_text("index\tquery\n9\th\n")
    (folder / "6.txt").write_text("i\n\nj\n")
    reading = Reading()
    found = [(item.name, item.question, item.pictures) for item in items_of(folder, reading)]
    coco, b, alone = "images/COCO_val_000000000042.png", "images/b.png", "images/alone.png"
    assert found == [
        ("1.jsonl:7", "a\u2028b", (coco,)), ("1.jsonl:2", "c", (b,)), ("1.jsonl:3", "d", ()), ("2.json:1", "e", (b, alone)),
        ("3.json:p1", "f", ()), ("3.json:p2", "g", ()), ("4.csv:1", "two\nlines", (b,)), ("5.tsv:9", "h", ()), ("6.txt:1", "i", ()),
        ("6.txt:2", "j", ())]
    assert reading.absent == 1


def test_pictures_without_questions_are_a_benchmark_too(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "x.png").write_bytes(stored(ONE))
    (folder / "broken.jpg").write_bytes(b"<html>")
    samples = [asked("a", "x", "y", stored(ONE)), asked("b", "x", "y", stored(OTHER))]
    assert cleaned(tmp_path, samples, [folder])[0] == {"a": "benchmark_image"}
    assert report(tmp_path)["benchmarks"]["broken_pictures"] == 1


@pytest.mark.parametrize("name, content, told", [
    ("q.jsonl", '{"question": "a"}\n{"asked": "b"}\n', r"q.jsonl, row 2 has no text under any of question, .* it has asked"),
    ("q.jsonl", '{"question"', "cannot be read as jsonl"), ("q.json", "[1]", "row 1: expected an object"),
    ("q.parquet", "x", "holds neither shards with an index, nor pictures, nor questions")])
def test_a_benchmark_that_cannot_be_read_stops_everything(tmp_path, name, content, told):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / name).write_text(content)
    with pytest.raises(DataError, match=told):
        list(items_of(tmp_path / "files", Reading()))


def test_unreadable_training_samples_are_counted(tmp_path):
    source = raw_folder(tmp_path / "in", {"a.json": record("x", "y", "a.0.png"), "a.0.png": stored(ONE)[:300], "b.json": record("x", "y")})
    manifest = decontaminate(source, tmp_path / "out", [benchmark(tmp_path)], Overlap())
    assert manifest["rejected"] == {"broken_image": 1} and manifest["kept"] == 1


def test_command_line(tmp_path, capsys):
    source = folder_of(tmp_path / "in", [asked("a", QUESTION, "x"), asked("b", "Say", LONG)])
    line = ["decontaminate", str(source), str(tmp_path / "out"), "--workers", "1", "--against"]
    assert main([*line, str(benchmark(tmp_path))]) == 0
    told = capsys.readouterr().out
    assert "1 of 2 samples kept" in told and "rejected         1  benchmark_text" in told and "matches.html" in told
    assert "1 benchmarks: 2 entries, 1 pictures; 1 samples match" in told
    assert main([*line, str(tmp_path / "nowhere")]) == 2 and "no benchmark folder at" in capsys.readouterr().err
    assert main([*line, str(source), str(source)]) == 2 and "same name" in capsys.readouterr().err


def test_scans_are_kept_and_made_again_only_if_something_changed(tmp_path):
    source = folder_of(tmp_path / "in", [asked(f"k{n}", QUESTION if n == 4 else "x", "y") for n in range(6)], 3)
    bench, cache = tmp_path / "questions", tmp_path / "out.decontaminate/matches"
    bench.mkdir()
    (bench / "questions.txt").write_text(f"{QUESTION}\n")

    def scanned() -> list[bool]:
        before = {path: path.stat().st_mtime_ns for path in cache.glob("*.json")}
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        decontaminate(source, tmp_path / "out", [bench], Overlap(images="report" if before else "reject"))
        return [before.get(path) != path.stat().st_mtime_ns for path in sorted(cache.glob("*.json"))]

    assert scanned() == [True, True]
    assert scanned() == [False, False]      # a policy finds nothing new
    (bench / "questions.txt").write_text(f"{QUESTION}\nWhat did the benchmark not ask before today, my dear friend?\n")
    assert scanned() == [True, True]
