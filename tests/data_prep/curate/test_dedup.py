"""`dedup`: equal and nearly equal samples are found without comparing all, the longest answer stays, and the curve is told."""

import json
import tarfile

import numpy as np
import pytest
from curate_toys import LONG, asked, folder_of, raw_folder, read_all, reasons, record, scene, stored, varied
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.__main__ import main
from data_prep.curate.dedup import dedup
from data_prep.curate.duplicates import WINDOW, Duplicates
from data_prep.curate.picture_hash import picture_hash
from data_prep.curate.signatures import Method
from data_prep.curate.similar import bucket_pairs, clusters_of, near_between, near_hashes
from data_prep.curate.words import jaccard, shingles, words_of
from data_prep.shards import index_folder
from nvlm_train.errors import DataError

ONE, OTHER = stored(scene(1)), stored(scene(2))
RECOMPRESSED = stored(scene(1), "JPEG", quality=60)
RESIZED = stored(scene(1).resize((180, 120), Image.Resampling.BICUBIC))


def deduplicated(tmp_path, samples, per_shard=3, **limits):
    out = tmp_path / "out"
    manifest = dedup(folder_of(tmp_path / "in", samples, per_shard), out, Duplicates(**limits))
    assert manifest["in"] == len(samples) == manifest["kept"] + sum(manifest["rejected"].values())
    return reasons(out), json.loads((tmp_path / "out.dedup" / "report.json").read_text())


def test_equal_and_nearly_equal_samples(tmp_path):
    left_out, report = deduplicated(tmp_path, [
        asked("a", "Describe it", LONG, ONE), asked("b", "describe  it.", LONG, ONE), asked("c", "Describe it", LONG, RECOMPRESSED),
        asked("d", "Describe it", LONG, RESIZED), asked("e", "Describe it", LONG, OTHER), asked("f", "Describe it", "Some bars", ONE),
        asked("g", "Say it", LONG), asked("h", "Say it", LONG.upper()), asked("i", "Say it", LONG + " or so"), asked("j", "Say", "it")])
    # h is g in other letters; i has all of g's words and more, so it is the one that stays.
    assert left_out == {"b": "exact_duplicate", "c": "near_duplicate", "d": "near_duplicate", "g": "near_duplicate", "h": "near_duplicate"}
    assert (report["clusters"], report["exact_duplicates"], report["near_duplicates"], report["distinct"]) == (2, 1, 4, 8)


def test_the_longest_answer_stays_and_of_equal_ones_the_first(tmp_path):
    samples = [asked("short", "Say it", LONG), asked("long", "Say it", LONG + " now"), asked("again", "Say it", LONG + " not")]
    left_out, _ = deduplicated(tmp_path, samples)
    assert set(left_out) == {"short", "again"}
    line = json.loads((tmp_path / "out/passed/shard-000000.rejected.jsonl").read_text().splitlines()[0])
    assert line == {"key": "short", "reason": "near_duplicate", "detail": "dup_of long, of 3 alike"}


def test_pictures_and_text_must_both_match(tmp_path):
    samples = [asked("a", "What colour?", "red", ONE), asked("b", "What colour?", "blue", ONE), asked("c", "What colour?", "red", OTHER),
               asked("d", "What colour?", "red", ONE, OTHER), asked("e", "What colour?", "red", OTHER, ONE),
               asked("f", "What colour?", "red")]
    assert deduplicated(tmp_path, samples)[0] == {}


def test_pictures_alone_decide_if_asked_to(tmp_path):
    samples = [asked("a", "What colour?", "red", ONE), asked("b", "How many?", "three bars", RECOMPRESSED),
               asked("c", "What?", "x", OTHER),
               asked("t", "Say it", LONG), asked("u", "Say it", LONG), asked("v", "Say something else", "no")]
    left_out, _ = deduplicated(tmp_path, samples, match="images")
    assert left_out == {"a": "near_duplicate", "u": "exact_duplicate"}


def test_sums_and_formulas_that_differ_in_signs_differ(tmp_path):
    samples = [asked("plus", "2 + 2?", "4"), asked("times", "2 * 2?", "4"), asked("dot", "2.2?", "4"), asked("again", "2 + 2", "4.")]
    assert deduplicated(tmp_path, samples)[0] == {"plus": "exact_duplicate"}


def test_flat_pictures_match_only_themselves(tmp_path):
    white, black = (stored(Image.new("RGB", (64, 64), colour)) for colour in ("white", "black"))
    assert picture_hash(white) != picture_hash(black)
    samples = [asked("a", "What is it?", "a page", white), asked("b", "What is it?", "a page", black),
               asked("c", "What is it?", "a page", white)]
    assert deduplicated(tmp_path, samples)[0] == {"c": "exact_duplicate"}


def test_the_curve_tells_how_many_pairs_each_threshold_finds(tmp_path):
    texts = [LONG, varied(0), varied(20), varied(5)]
    samples = [asked(f"k{number}", "Say it", text) for number, text in enumerate(texts)]
    _, report = deduplicated(tmp_path, samples, jaccard=0.99)
    sets = [shingles(words_of(f"Say it {text}"), 5) for text in texts]
    exact = [jaccard(sets[i], sets[j]) for i in range(4) for j in range(i)]
    curve = {point["jaccard"]: point["pairs"] for point in report["jaccard_curve"]}
    assert curve == {least: sum(value >= least for value in exact) for least in curve} and len(curve) == 11
    assert curve[0.5] > curve[0.75] > curve[1.0] == 0
    assert report["jaccard_curve"][6]["chance"] == pytest.approx(1 - (1 - 0.8 ** 4) ** 28, abs=1e-6)


def test_the_curve_of_pictures_counts_pairs(tmp_path):
    _, report = deduplicated(tmp_path, [asked(f"k{n}", "x", str(n), image) for n, image in enumerate((ONE, ONE, ONE, OTHER))], hamming=3)
    assert report["hamming_curve"] == [{"bits": bits, "pairs": 3} for bits in range(4)] and report["pictures"] == 4


def test_what_cannot_be_read_is_left_out_and_counted(tmp_path):
    source = raw_folder(tmp_path / "in", {"a.json": record("What?", "x", "a.0.png"), "a.0.png": ONE[:200], "b.json": record("What?", "x"),
                                          "c.json": b"{"})
    manifest = dedup(source, tmp_path / "out", Duplicates())
    assert manifest["rejected"] == {"bad_json": 1, "broken_image": 1} and manifest["kept"] == 1


def test_signatures_are_kept_and_made_again_only_if_the_shard_changed(tmp_path):
    samples = [asked(f"k{number}", "Say", f"number {number}") for number in range(6)]
    source = folder_of(tmp_path / "in", samples, 3)
    dedup(source, tmp_path / "out", Duplicates())
    cache = sorted((tmp_path / "out.dedup/signatures").iterdir())
    before = [path.stat().st_mtime_ns for path in cache]
    assert len(cache) == 4
    dedup(source, tmp_path / "out", Duplicates())
    assert [path.stat().st_mtime_ns for path in cache] == before
    cache[1].write_bytes(cache[1].read_bytes()[:100])     # as a crash may leave it
    dedup(source, tmp_path / "out", Duplicates())
    assert [path.stat().st_mtime_ns == then for path, then in zip(cache, before, strict=True)] == [False, False, True, True]
    report = (tmp_path / "out.dedup/report.json").read_text()
    with pytest.raises(DataError, match="begun differently"):
        dedup(source, tmp_path / "out", Duplicates(jaccard=0.5))
    assert (tmp_path / "out.dedup/report.json").read_text() == report


def test_crowded_buckets_are_told(tmp_path):
    samples = [asked(f"k{number:03d}", "?", f"{LONG} {number}") for number in range(WINDOW + 3)]
    left_out, report = deduplicated(tmp_path, samples, per_shard=1000)
    assert len(left_out) == WINDOW + 2 and report["not_compared"] > 0


def test_command_line(tmp_path, capsys):
    source = folder_of(tmp_path / "in", [asked("a", "Say", LONG), asked("b", "Say", LONG)])
    assert main(["dedup", str(source), str(tmp_path / "out"), "--jaccard", "0.85", "--workers", "1"]) == 0
    told = capsys.readouterr().out
    assert "1 of 2 samples kept" in told and "0.85 <-" in told and "report.json" in told and set(read_all(tmp_path / "out")) == {"a"}
    assert main(["dedup", str(source), str(tmp_path / "out2"), "--jaccard", "85"]) == 2
    assert "--jaccard 85 lies between 0 and 1" in capsys.readouterr().err


HASHES = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 63), max_size=6)), min_size=1, max_size=20)


def _with_neighbours(drawn) -> np.ndarray:
    values = {value for value, _ in drawn} | {value ^ sum(1 << bit for bit in set(bits)) for value, bits in drawn}
    return np.array(sorted(values), dtype=np.uint64)


@settings(deadline=None)
@given(drawn=HASHES, most=st.integers(0, 8))
def test_no_near_pair_is_missed(drawn, most):
    values = _with_neighbours(drawn)
    expected = {(i, j): (int(values[i]) ^ int(values[j])).bit_count() for j in range(len(values)) for i in range(j)}
    expected = {pair: bits for pair, bits in expected.items() if bits <= most}
    i, j, bits = near_hashes(values, most)
    assert dict(zip(zip(i.tolist(), j.tolist(), strict=True), bits.tolist(), strict=True)) == expected and len(i) == len(expected)
    half = values[::2]
    i, j, bits = near_between(half, values, most)
    crossed = {(a, b): (int(half[a]) ^ int(values[b])).bit_count() for a in range(len(half)) for b in range(len(values))}
    assert {(a, b): d for a, b, d in zip(i.tolist(), j.tolist(), bits.tolist(), strict=True)} == {
        pair: d for pair, d in crossed.items() if d <= most}


@settings(deadline=None)
@given(keys=st.lists(st.integers(0, 5), max_size=30), window=st.integers(1, 40))
def test_buckets_give_every_pair_within_the_window_once(keys, window):
    found = [pair for i, j in bucket_pairs(np.array(keys, dtype=np.uint64), window) for pair in zip(i.tolist(), j.tolist(), strict=True)]
    places = {key: [place for place, value in enumerate(keys) if value == key] for key in keys}
    expected = {(a, b) for of_key in places.values() for rank, a in enumerate(of_key) for b in of_key[rank + 1:rank + 1 + window]}
    assert set(found) == expected and len(found) == len(expected)


def test_clusters_join_chains():
    label = clusters_of(5, np.array([0, 1, 3]), np.array([1, 2, 4]))
    assert label[0] == label[1] == label[2] != label[3] == label[4]


def test_jaccard_and_words():
    assert jaccard(shingles(["a"], 5), shingles(["a"], 5)) == 1 and jaccard(shingles([], 5), shingles([], 5)) == 1
    assert jaccard(np.array([1, 2, 3], np.uint64), np.array([2, 3, 4], np.uint64)) == 0.5
    assert words_of("Straße, „Ünïcode“ don't 3.14 東京x <image>") == ["strasse", "ünïcode", "don", "t", "3", "14", "東", "京", "x"]
    assert words_of(r"\frac{a}{b} - 50% _x_ «ja» 「日」!") == ["\\", "frac", "a", "b", "-", "50", "%", "_x_", "ja", "日"]
    assert Method(bands=14).chance(0.8) == pytest.approx(0.924, abs=1e-3)


def test_a_shard_without_samples_is_no_trouble(tmp_path):
    source = folder_of(tmp_path / "in", [asked("a", "Say", LONG), asked("b", "Say", LONG)])
    with tarfile.open(source / "zero.tar", "w", format=tarfile.USTAR_FORMAT):
        pass
    index_folder(source)
    assert dedup(source, tmp_path / "out", Duplicates())["rejected"] == {"exact_duplicate": 1}
