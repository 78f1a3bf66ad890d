"""Problems drawn as pictures."""

import io

import numpy as np
import pytest
from convert_toys import convert, lay_out, said
from PIL import Image

from data_prep.convert.page import LONGEST, page
from nvlm_train.errors import SampleRefused

GSM8K = {"question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
                     "How many clips did Natalia sell altogether in April and May?",
         "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 72"}
SQUAD = {"version": "1.1", "data": [{"title": "Notre_Dame", "paragraphs": [
    {"context": "Architecturally, the school has a Catholic character.", "qas": [
        {"id": "5733be284776f41900661182", "question": "What character?", "answers": [{"text": "Catholic", "answer_start": 34}] * 2},
        {"id": "5733be284776f4190066117f", "question": "Unanswerable?", "answers": []}]},
    {"context": "Another.", "qas": [{"id": "3", "question": "Which?", "answers": [{"text": "other", "answer_start": 0}]}]}]}]}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_golden_gsm8k(tmp_path):
    root = lay_out(tmp_path / "gsm8k", {"train.jsonl": [GSM8K]})
    sample = convert(root, "rendered", records="train.jsonl").only
    assert sample.key == "toy-train-0" and said(sample) == [("user", "<image>\nThe picture holds a question. Answer it."),
                                                            ("assistant", GSM8K["answer"])]
    assert sample.meta == {"task": "rendered", "dataset": "toy", "answers": [GSM8K["answer"]], "drawn": GSM8K["question"]}
    drawn = pixels(sample.images[0])
    assert drawn.shape[1] in (448, 640, 896) and 0.01 < (drawn < 128).mean() < 0.2
    assert (drawn[:20] == 255).all() and (drawn[:, :20] == 255).all() and (drawn[:, -20:] == 255).all()


def test_squad_draws_the_passage_above_the_question(tmp_path):
    root = lay_out(tmp_path / "squad", {"train-v1.1.json": SQUAD})
    found = convert(root, "rendered", records="train-v1.1.json", at="data", items="paragraphs/qas", context="context", answer="answers")
    assert [sample.meta["drawn"] for sample in found.samples.values()] == [
        "Architecturally, the school has a Catholic character.\n\nWhat character?", "Another.\n\nWhich?"]
    assert [sample.turns[1].text for sample in found.samples.values()] == ["Catholic", "other"]
    assert list(found.rejected.values()) == ["empty_text"]


def test_the_same_text_gives_the_same_picture():
    assert page("2 + 2 = ?", 448, "builtin", 20) == page("2 + 2 = ?", 448, "builtin", 20) != page("2 + 3 = ?", 448, "builtin", 20)


def test_long_words_and_texts_are_wrapped():
    narrow, wide = pixels(page("word " * 60 + "x" * 300, 448, "builtin", 20)), pixels(page("word " * 60 + "x" * 300, 896, "builtin", 20))
    assert narrow.shape[0] > 1.5 * wide.shape[0] and (narrow[:, -20:] == 255).all()


def test_signs_that_the_font_lacks_are_rejected():
    for name, text in (("builtin", "√2 ≤ π"), ("dejavu", "北京")):
        with pytest.raises(SampleRefused, match="no_glyph"):
            page(text, 448, name, 20)
    assert (pixels(page("√2 ≤ π", 448, "dejavu", 20)) < 128).any()


def test_a_text_that_no_page_holds_is_rejected():
    with pytest.raises(SampleRefused, match=f"too_long_for_page: {LONGEST + 1} lines"):
        page("a\n" * (LONGEST + 1), 448, "builtin", 20)
