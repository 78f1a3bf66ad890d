"""Broken shards and samples through the doors that data comes in by: the indexer, the loader, the passes. Numbers: docs/data_faults.md."""

import logging
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from data_prep.__main__ import main as data_prep
from data_prep.shards import index_folder, write_shards
from nvlm_train.contracts import IMAGE_PLACEHOLDER, Sample
from nvlm_train.data.encode import Encoder
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import DataError, SampleRefused
from tests.data.data_toys import conversation, encoded, make_samples, picture
from tests.faults.broken_data import DAMAGE, FAULTY, bomb, changed, faulty_shard, place_of, record, stored, write_tar
from tests.faults.one_epoch import TOKENIZER, refused, run_on, steps_of

RESIZING = {name: break_it for name, break_it in DAMAGE.items() if name.startswith("cut") or name in ("zero bytes", "two tars in one")}
SAME_SIZE = {name: break_it for name, break_it in DAMAGE.items() if name in ("zeroed header", "random header", "bit flip in a name")}


@pytest.fixture
def shards(tmp_path):
    """20 samples in two shards, none without a picture."""
    write_shards(tmp_path / "shards", make_samples(20, text_only_every=100), samples_per_shard=10)
    return tmp_path / "shards"


# 34, 35, 36: shards

@pytest.mark.parametrize("damage", [*RESIZING, "missing"])
def test_a_shard_of_another_size_stops_the_run_before_its_first_step(shards, damage):
    path = shards / "shard-000001.tar"
    size = path.stat().st_size
    path.unlink() if damage == "missing" else RESIZING[damage](path)
    with pytest.raises(DataError) as caught:
        steps_of(shards, 20)
    told = str(caught.value)
    assert str(path) in told
    assert "cannot be read: No such file" in told if damage == "missing" else f"{path.stat().st_size:,} bytes" in told and f"{size:,}" in told


@pytest.mark.parametrize("damage", SAME_SIZE)
def test_a_header_damaged_after_indexing_ends_nothing_early_and_is_named(shards, damage, capsys):
    """Others stop at such a header without a word. Ours are found by position, and whoever checks the hashes is told."""
    path = shards / "shard-000000.tar"
    SAME_SIZE[damage](path)
    steps = steps_of(shards, 20)
    assert sorted(slot.key for step in steps for slot in step.slots) == [sample.key for sample in make_samples(20)]
    assert refused(steps) == {}
    assert data_prep(["index", str(shards), "--check"]) == 2 and f"{path}: SHA-256 is" in capsys.readouterr().err
    assert data_prep(["verify", str(shards)]) == 1 and f"{path}: SHA-256 is" in capsys.readouterr().out


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_shard_that_is_broken_when_it_is_indexed_is_refused_by_name(shards, damage, capsys):
    (shards / "index.json").unlink()
    DAMAGE[damage](shards / "shard-000001.tar")
    assert data_prep(["index", str(shards)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: shard {shards}/shard-000001.tar ") and "Traceback" not in told
    assert not (shards / "index.json").exists(), "nothing can be trained on half a folder"


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link"])
def test_what_is_called_a_tar_and_is_no_file_is_refused(shards, kind, capsys):
    path = shards / "z.tar"
    {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir, "dangling link": lambda: path.symlink_to("nowhere")}[kind]()
    assert data_prep(["index", str(shards)]) == 2
    assert f"{path} is no plain file" in capsys.readouterr().err


def test_counts_of_a_damaged_shard_are_not_kept(shards, caplog):
    """Text tokens are counted once and stored; what a broken shard gave must not outlive its repair."""
    path = shards / "shard-000000.tar"
    whole = path.read_bytes()
    changed(path, place_of(path, 0)[1], b"[")
    assert refused(steps_of(shards, 20)) == {"mixed-0000": "changed_bytes"}
    assert f"mixed-0000 of {path}, changed_bytes" in caplog.text
    path.write_bytes(whole)
    assert refused(steps_of(shards, 20)) == {}


# 37, 38, 39, 41: samples

@pytest.fixture
def faulty(tmp_path):
    """8 good samples and each of FAULTY, in one shard."""
    return faulty_shard(tmp_path / "faulty" / "a.tar", good=8).parent


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_each_faulty_sample_is_skipped_with_its_reason_and_logged(faulty, caplog, capsys):
    assert data_prep(["index", str(faulty)]) == 0
    told = capsys.readouterr().out
    for reason, count in Counter(reason for _, reason in FAULTY.values() if reason != "broken_image").items():
        assert f"{count} samples will be left out: {reason}" in told
    steps = steps_of(faulty, 20)
    assert refused(steps) == {key: reason for key, (_, reason) in FAULTY.items()}
    assert {key for step in steps for row in step.rows for key in row.keys} == {f"good{n}" for n in range(8)}
    for key, (_, reason) in FAULTY.items():
        line, = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and f" {key} of " in r.getMessage()]
        shown, _, detail = line.partition(f"{key} of {faulty / 'a.tar'}, {reason}: ")
        assert shown.startswith("slot ") and detail, "shard, key, reason, and a detail that is not empty"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_pass_leaves_the_same_samples_out_for_the_same_reasons(faulty, tmp_path, capsys):
    index_folder(faulty)
    assert data_prep(["check", str(faulty), str(tmp_path / "out"), "--workers", "1"]) == 0
    told = capsys.readouterr().out
    for reason, count in Counter(reason for _, reason in FAULTY.values()).items():
        assert f"rejected {count:>9,}  {reason}" in told
    assert {key for key, _ in _contents(tmp_path / "out")} == {f"good{n}" for n in range(8)}


def _contents(folder: Path) -> list[tuple[str, list[tuple[int, int]]]]:
    opened = ShardFolder(folder, "x")
    return [(opened.key(n), opened.image_sizes(n)) for n in range(len(opened))]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 12_000, 30_000])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_a_bomb_is_refused_before_anything_is_decoded(tmp_path, kind, side, monkeypatch):
    def explode(*arguments, **options):
        raise AssertionError("decoded")
    monkeypatch.setattr(ImageFile.ImageFile, "load", explode)
    monkeypatch.setattr("nvlm_train.data.images.simplejpeg.decode_jpeg", explode)
    write_tar(tmp_path / "x" / "a.tar", {"k.json": record("k.0.png"), "k.0.png": bomb(kind, side)})
    assert index_folder(tmp_path / "x")["refused"] == {"image_too_large": 1}
    with pytest.raises(SampleRefused, match="image_too_large"):
        ShardFolder(tmp_path / "x", "x").image_sizes(0)
    assert refused(steps_of(tmp_path / "x", 1, 1)) == {"k": "image_too_large"}


# 47: shapes

def test_extreme_shapes_come_out_as_tiles(tmp_path):
    shapes = [(1, 1), (20_000, 2), (2, 20_000), (1, 300), (33, 1)]
    write_shards(tmp_path / "x", [Sample(f"k{n}", "x", (stored(Image.new("RGB", shape, "teal")),), conversation("What?", "Teal."))
                                  for n, shape in enumerate(shapes)])
    step, = steps_of(tmp_path / "x", 5)
    assert refused([step]) == {}
    tiles = {key: 0 for key in ("k0", "k1", "k2", "k3", "k4")}
    for row in step.rows:
        assert (row.tiles_nCPP == row.tiles_nCPP[:1, :, :1, :1]).all(), "a plain picture stays plain"
        for start in row.tile_starts_n.tolist():
            tiles[row.keys[int((row.cu_seqlens[1:] <= start).sum())]] += 1
    assert tiles == {"k0": 1, "k1": 7, "k2": 7, "k3": 7, "k4": 7}


# 48: text

TEXTS = {
    "novel": (("Describe it.", "so long " * 5000), 1, "too_long"),
    "question": (("why " * 5000, "Because."), 0, "too_long"),
    "silent": (("What is it?", ""), 1, "nothing_supervised"),
    "blank": (("What is it?", " \n"), 1, "nothing_supervised"),
    "wordless": (("<image>", "<image>"), 2, "nothing_supervised"),
    "more": (("<image> and <image>", "Two."), 1, "placeholder_mismatch"),
    "fewer": (("<image> only?", "One."), 2, "placeholder_mismatch"),
    "none": (("<image>", "None."), 0, "placeholder_mismatch"),
    "picture": (("<image>", "A square."), 1, None),
    "unplaced": (("What are they?", "Squares."), 2, None),
}


def test_odd_texts_are_used_whole_or_skipped_with_their_reason(tmp_path, caplog):
    image = encoded(picture(30, 30))
    write_shards(tmp_path / "x", [Sample(key, "x", (image,) * images, conversation(*turns)) for key, (turns, images, _) in TEXTS.items()])
    steps = steps_of(tmp_path / "x", 10)
    assert refused(steps) == {key: reason for key, (_, _, reason) in TEXTS.items() if reason}
    assert {key for step in steps for row in step.rows for key in row.keys} == {key for key, (_, _, reason) in TEXTS.items() if not reason}
    assert "the limit is 256 (data.max_tokens, data.pack_tokens)" in caplog.text and "2 <image> in the text, 1 images" in caplog.text


RUN = run_on(Path("unread"), 5)
ENCODER = Encoder(RUN.model, RUN.data, TOKENIZER)
words = st.one_of(st.text(max_size=40), st.sampled_from([IMAGE_PLACEHOLDER, "<|im_end|>", " long" * 90, ""]))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=3), st.integers(0, 2))
def test_an_answer_is_learned_whole_or_the_sample_is_refused(exchanges, images):
    turns = tuple(turn for question, answer in exchanges for turn in conversation(question, answer))
    sample = Sample("k", "x", (encoded(picture(30, 30)),) * images, turns)
    try:
        result = ENCODER.encode(sample)
    except SampleRefused as refusal:
        assert refusal.reason in ("too_long", "placeholder_mismatch", "nothing_supervised") and refusal.detail
        return
    assert result.length <= 256
    answers = [turn.text.replace(IMAGE_PLACEHOLDER, "") for turn in turns if turn.role == "assistant"]
    learned = TOKENIZER.decode(result.tokens[result.loss_weights > 0], skip_special=False)
    assert learned == "".join(f"{answer}<|im_end|>\n" for answer in answers)
