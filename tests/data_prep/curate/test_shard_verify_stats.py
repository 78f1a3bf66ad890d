"""`shard` merges and shuffles to the same bytes every time, `verify` finds what differs, `stats` counts what is there."""

import json

import pytest
from curate_toys import asked, folder_of, raw_folder, read_all, record, scene, stored

from data_prep.__main__ import main
from data_prep.curate.check import Check
from data_prep.curate.shard import merge
from data_prep.curate.stats import stats_of
from data_prep.curate.verify import verify
from data_prep.passes import Judged, run_pass
from nvlm_train.data.shards import ShardFolder
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.errors import DataError

PICTURE = stored(scene(1))


def two_folders(tmp_path):
    a = [asked(f"k{number}", "What?", str(number), PICTURE, task="count") for number in range(7)]
    b = [asked(f"k{number}", "Say it", f"b{number}") for number in range(5)]
    return folder_of(tmp_path / "a", a, 3), folder_of(tmp_path / "b", b, 3)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def keys(folder):
    shards = ShardFolder(folder, "x")
    return [shards.key(number) for number in range(len(shards))]


def merged(tmp_path, out, seed=None, workers=1, names=None, **sizes):
    folders = [tmp_path / "a", tmp_path / "b"]
    return run_pass("shard", merge(folders, names, seed, **sizes), tmp_path / out, workers)


def test_folders_are_merged_in_order_and_keys_never_collide(tmp_path):
    two_folders(tmp_path)
    manifest = merged(tmp_path, "out", samples=5)
    assert keys(tmp_path / "out") == [f"a/k{n}" for n in range(7)] + [f"b/k{n}" for n in range(5)]
    assert (manifest["in"], manifest["kept"], manifest["shards"]) == (12, 12, 3)
    found = read_all(tmp_path / "out")
    assert found["a/k3"].images == (PICTURE,) and found["a/k3"].meta == {"task": "count"} and found["b/k3"].turns[1].text == "b3"


@pytest.mark.distributed
def test_a_seed_shuffles_everything_and_gives_the_same_bytes_again(tmp_path):
    two_folders(tmp_path)
    for out, seed, workers in (("one", 1, 1), ("again", 1, 2), ("two", 2, 1)):
        merged(tmp_path, out, seed, workers, samples=5)
    assert content(tmp_path / "one") == content(tmp_path / "again") != content(tmp_path / "two")
    everything = sorted([f"a/k{n}" for n in range(7)] + [f"b/k{n}" for n in range(5)])
    assert sorted(keys(tmp_path / "one")) == sorted(keys(tmp_path / "two")) == everything
    assert {key[0] for key in keys(tmp_path / "one")[:7]} == {"a", "b"}


def test_shards_are_cut_by_bytes_too(tmp_path):
    two_folders(tmp_path)
    most = 3 * (512 + 512 + 512 + -(-len(PICTURE) // 512) * 512) + 1024     # three samples of `a`, and the end of a tar
    merged(tmp_path, "out", samples=100, megabytes=most / 1e6)
    entries = ShardFolder(tmp_path / "out", "x").entries
    assert [entry.samples for entry in entries][:2] == [3, 3] and sum(entry.samples for entry in entries) == 12
    assert all(entry.size <= -(-most // 10_240) * 10_240 for entry in entries)      # tar rounds up to its records
    merged(tmp_path, "single", samples=100, megabytes=0.0001)
    assert [entry.samples for entry in ShardFolder(tmp_path / "single", "x").entries] == [1] * 12


def test_names_of_folders(tmp_path):
    two_folders(tmp_path)
    merged(tmp_path, "out", names=["left", "right"])
    assert {key.partition("/")[0] for key in keys(tmp_path / "out")} == {"left", "right"}
    for names, told in ((["x"], "2 folders and 1 names"), (["x", "x"], "1 of them different"), (["a/b", "c"], "cannot stand before keys")):
        with pytest.raises(DataError, match=told):
            merge([tmp_path / "a", tmp_path / "b"], names, None)
    with pytest.raises(DataError, match="has 82 bytes, at most 80 fit"):
        merge([tmp_path / "a", tmp_path / "b"], ["n" * 79, "b"], None)


def test_one_folder_keeps_its_keys(tmp_path):
    source, _ = two_folders(tmp_path)
    assert main(["shard", str(source), str(tmp_path / "out"), "--seed", "5", "--samples-per-shard", "4", "--workers", "1"]) == 0
    assert sorted(keys(tmp_path / "out")) == [f"k{n}" for n in range(7)] != keys(tmp_path / "out")
    assert read_all(tmp_path / "out") == read_all(source)


def test_what_cannot_be_used_is_counted(tmp_path):
    folder_of(tmp_path / "a", [asked("k", "x", "y")])
    raw_folder(tmp_path / "b", {"good.json": record("x", "y"), "bad.json": b"{"})
    manifest = merged(tmp_path, "out", seed=3)
    assert (manifest["in"], manifest["kept"], manifest["rejected"]) == (3, 2, {"bad_json": 1})


def chain(tmp_path):
    samples = [asked(f"k{number}", "What?", "x" * (number % 2), PICTURE) for number in range(8)]
    raw, clean, out = folder_of(tmp_path / "raw", samples, 3), tmp_path / "clean", tmp_path / "out"
    run_pass("check", Judged(raw, Check()), clean)
    run_pass("shard", merge([clean], None, 1), out)
    return raw, clean, out


def test_a_chain_that_is_as_it_was_written(tmp_path, capsys):
    folders = chain(tmp_path)
    assert main(["verify", "--chain", *map(str, folders)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[1] == f"{folders[1]}: as written; 3 shards, 4 samples; check: 8 in = 4 kept + 4 rejected"
    assert len(told) == 3 and told[0].endswith("raw: as written; 3 shards, 8 samples")


def test_changed_bytes_are_found_with_shard_and_sample(tmp_path, capsys):
    raw, clean, _ = chain(tmp_path)
    shard = clean / "shard-000001.tar"
    data = shard.read_bytes()
    at = data.index(b'"What?"')
    shard.write_bytes(data[:at] + b'"That?"' + data[at + 7:])
    assert main(["verify", str(raw), str(clean)]) == 1
    told = capsys.readouterr().out
    assert f"{raw}: as written" in told and f"{clean}: 2 problems" in told
    assert "shard-000001.tar: SHA-256 is" in told and "k3 of" in told and "is not what was indexed" in told


@pytest.mark.parametrize("damage, told", [
    (lambda clean: (clean / "shard-000000.tar").unlink(), "is in the index and cannot be read"),
    (lambda clean: (clean / "shard-000000.tar").write_bytes(b""), "truncated: 0 bytes"),
    (lambda clean: (clean / "index.json").write_text("{"), "cannot be read"),
    (lambda clean: _edit(clean / "manifest.json", kept=5), "samples taken in, and kept + rejected differ: 8 and 9"),
    (lambda clean: _edit(clean / "manifest.json", **{"in": 9, "kept": 5}), "the pass took in 9 samples, and the folders"),
    (lambda clean: _edit(clean / "manifest.json", rejected={"other": 4}), "rejected samples by reason, and as listed differ"),
    (lambda clean: (clean / "passed/shard-000001.rejected.jsonl").write_text(""), "{'empty_turn': 4} and {'empty_turn': 3}"),
    (lambda clean: (clean / "passed/shard-000001.json").unlink(), "units in the manifest, and done differ: 3 and 2"),
    (lambda clean: (clean / "manifest.json").write_text("[]"), "TypeError"),
])
def test_each_kind_of_damage_is_a_problem(tmp_path, damage, told):
    raw, clean, _ = chain(tmp_path)
    damage(clean)
    first, second = verify([raw, clean])
    assert first.problems == [] and any(told in problem for problem in second.problems), second.problems


def _edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_chain_with_a_link_missing(tmp_path):
    raw, clean, out = chain(tmp_path)
    assert [bool(one.problems) for one in verify([raw, out], chain=True)] == [False, True]
    assert "was not made from" in verify([clean, raw], chain=True)[1].problems[0]
    assert [one.problems for one in verify([raw, out])] == [[], []]


def test_counts_and_histograms(tmp_path):
    samples = [asked("a", "<image>\nWhat?", "yes ", stored(scene(1, 40, 20)), task="vqa"),
               asked("b", "What?", "yes", stored(scene(1, 300, 100)), stored(scene(2, 100, 300)), task="vqa"),
               asked("c", "Which?", "no", stored(scene(3, 64, 64)), task="vqa"), asked("d", "Say", "so")]
    found = stats_of(folder_of(tmp_path / "in", samples), None, max_tiles=6, tile_size=64)
    assert (found["samples"], found["images"], found["refused"]) == (4, 4, {})
    assert found["images_per_sample"] == {"0": 1, "1": 2, "2": 1}
    assert found["short_side"] == {"0": 1, "28": 0, "64": 3, "128": 0, "224": 0, "448": 0, "896": 0, "1344": 0, "2688": 0}
    assert found["aspect"] == {"1": 1, "1.25": 0, "1.5": 0, "2": 1, "3": 2, "4": 0, "6": 0, "10": 0}
    assert found["tiles_per_image"] == {"1": 1, "3": 1, "4": 2}     # 64x64 alone; 2x1, 3x1 and 1x3 with thumbnails
    assert found["answer_characters"]["100"] == 4 and found["width"] == {"0": 40, "5": 40, "50": 100, "95": 300, "99": 300, "100": 300}
    assert found["tasks"]["vqa"] == {"samples": 3, "images": 4, "answers": 3, "different_answers": 2,
                                     "most_common": [["yes", 2], ["no", 1]]}
    assert found["tasks"]["(none)"]["samples"] == 1


def test_lengths_in_tokens_and_the_file(tmp_path, capsys):
    source = folder_of(tmp_path / "in", [asked("a", "What is in the image?", "A red circle.", PICTURE)])
    assert main(["stats", str(source), "--tokenizer", "tiny", "--max-tiles", "1"]) == 0
    found, tokens = json.loads((source / "stats.json").read_text()), load_tokenizer("tiny")
    assert found["answer_tokens"]["50"] == len(tokens.encode("A red circle.")) and found["tiles_per_image"] == {"1": 1}
    assert found["context_tokens"]["50"] == len(tokens.encode("What is in the image?"))
    told = capsys.readouterr().out
    assert "1 samples, 1 images, 1 shards" in told and "tiles of an image (1 of 448 px at most" in told


def test_what_cannot_be_used_is_told(tmp_path):
    source = raw_folder(tmp_path / "in", {"good.json": record("x", "y"), "bad.json": b"{", "html.json": record("x", "y", "html.0.jpg"),
                                          "html.0.jpg": b"<html>"})
    found = stats_of(source, None, 6, 448)
    assert found["refused"] == {"bad_json": 1, "broken_image": 1} and found["images"] == 0 and found["width"] == {}
