"""The shipped tokenizer: rebuilt byte for byte, and short where NVLM's sequences need it to be."""

import json

import pytest

from data_prep import phrases, tiny_tokenizer
from nvlm_train.data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def shipped():
    return load_tokenizer("tiny")


def test_rebuilding_gives_the_shipped_file(tmp_path, capsys):
    tiny_tokenizer.main([str(tmp_path / "again.json")])
    assert (tmp_path / "again.json").read_bytes() == tiny_tokenizer.ASSET.read_bytes()
    assert "1024 entries" in capsys.readouterr().out


def test_special_tokens_are_added_tokens_with_the_first_ids():
    added = json.loads(tiny_tokenizer.ASSET.read_text())["added_tokens"]
    assert [(token["id"], token["content"], token["special"]) for token in added] == [
        (0, "<|endoftext|>", True), (1, "<|im_start|>", True), (2, "<|im_end|>", True), (3, "<image>", True)]


def test_ids_that_the_framework_asks_for(shipped):
    assert (shipped.vocab_size, shipped.pad_id, shipped.eos_id, shipped.image_id) == (1024, 0, 2, 3)


def test_one_digit_tags_and_the_thumbnails_are_equally_long(shipped):
    tags = [f"<tile_{number}>" for number in range(1, 10)] + ["<tile_global_thumbnail>"]
    assert {len(shipped.encode(tag)) for tag in tags} == {4}


def test_grid_tags_are_equally_long(shipped):
    assert {len(shipped.encode(f"<tile_x{x}_y{y}>")) for x in range(4) for y in range(3)} == {6}


def test_answers_of_the_datasets_are_single_tokens(shipped):
    for answer in [*phrases.SHAPES, *phrases.COLORS, "yes", "no"]:
        assert len(shipped.encode(answer)) == 1, answer


@pytest.mark.parametrize("text", ["Größe: 12 €", "a\n\n  b\tc", "☃ ∀x∈ℝ", "<|im_end|> and <image> are only text here", "don't"])
def test_any_text_survives(shipped, text):
    assert shipped.decode(shipped.encode(text)) == text


def test_a_corpus_that_is_too_small_is_refused(monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "corpus", lambda: iter(["too little text"]))
    with pytest.raises(ValueError, match="instead of 1024"):
        tiny_tokenizer.build()
