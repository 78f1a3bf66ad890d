"""Questions from shards, asked of an engine whose answers are known."""

import io
from dataclasses import replace

import pytest
from fakes import LookupEngine
from PIL import Image

from data_prep.shards import write_shards
from nvlm_train.config.schema import Connector, Data, Language, Model, Vision
from nvlm_train.contracts import Sample, Turn
from nvlm_train.data.encode import Encoder
from nvlm_train.data.images import image_size
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.errors import DataError
from nvlm_train.evaluation import predictions
from nvlm_train.evaluation.tasks import ask, blanked, read_questions, scores_by_task, truths_of
from nvlm_train.training.report import write_predictions

TOKENIZER = load_tokenizer("tiny")
MODEL = Model(vision=Vision(tile_size=32, patch=8), connector=Connector(), language=Language(vocab=1024))
ENCODER = Encoder(MODEL, Data(format="chat", max_tokens=240, pack_tokens=256, max_tiles=4, pack_tiles=8), TOKENIZER)


def picture(width, height, color="red"):
    out = io.BytesIO()
    Image.new("RGB", (width, height), color).save(out, "PNG")
    return out.getvalue()


def question(number, truth, size=(32, 32), **meta):
    turns = (Turn("user", f"<image>\nWhat is number {number}?"), Turn("assistant", truth))
    return Sample(f"q{number}", "quiz", (picture(*size),), turns, meta)


def always(text):
    """An engine that answers every prompt with `text`; prompts end in `assistant` and a newline."""
    answer = [*TOKENIZER.encode(text), TOKENIZER.eos_id]
    opening = TOKENIZER.encode("assistant\n")

    def script(tokens):
        start = max(i for i in range(len(tokens) + 1) if tokens[max(0, i - len(opening)):i] == opening)
        return answer[len(tokens) - start]

    return LookupEngine(script)


def test_answers_are_marked_and_counted_by_task():
    samples = [question(1, "yes", task="a"), question(2, "No.", task="a"), question(3, "x", task="b", answers=["no", "none"])]
    answers = ask(always("no"), ENCODER, samples, 6)
    assert [(answer.text, answer.correct) for answer in answers] == [("no", False), ("no", True), ("no", True)]
    scores = scores_by_task(answers)
    assert list(scores) == ["a", "b"]
    assert (scores["a"].accuracy, scores["a"].count, scores["b"].accuracy) == (0.5, 2, 1.0)


def test_the_truth_is_not_shown_to_the_model():
    engine = always("no")
    ask(engine, ENCODER, [question(1, "umbrella")], 4)
    assert "umbrella" not in TOKENIZER.decode(engine.rows[0].tokens_T)


def test_a_question_that_cannot_be_put_counts_as_wrong_with_its_reason():
    long = replace(question(2, "no"), turns=(Turn("user", "<image>\n" + "why " * 300), Turn("assistant", "no")))
    answers = ask(always("no"), ENCODER, [question(1, "no"), long, question(3, "no")], 4)
    assert [answer.correct for answer in answers] == [True, False, True]
    assert answers[1].refused.startswith("too_long")


def test_blanked_pictures_keep_their_size_and_lose_their_content():
    sample = blanked(replace(question(1, "no"), images=(picture(40, 20), picture(7, 9))))
    assert [image_size(image) for image in sample.images] == [(40, 20), (7, 9)]
    assert {color for image in sample.images for _, color in Image.open(io.BytesIO(image)).getcolors()} == {(128, 128, 128)}
    assert sample.turns == question(1, "no").turns


def test_questions_are_read_evenly_spread(tmp_path):
    write_shards(tmp_path / "quiz", [question(n, "no", task="t") for n in range(10)], samples_per_shard=4)
    assert [sample.key for sample in read_questions(str(tmp_path / "quiz"), "quiz")] == [f"q{n}" for n in range(10)]
    assert [sample.key for sample in read_questions(str(tmp_path / "quiz"), "quiz", limit=4)] == ["q0", "q2", "q5", "q7"]
    assert len(read_questions(str(tmp_path / "quiz"), "quiz", limit=99)) == 10


def test_a_sample_without_truth_is_refused():
    with pytest.raises(DataError, match="q1 of quiz cannot be scored"):
        truths_of(replace(question(1, "no"), turns=(Turn("user", "<image>\nwhat?"),)))


def test_gallery_rows_hold_every_tile_with_tag_and_place(tmp_path):
    answers = ask(always("no"), ENCODER, [question(1, "no", size=(64, 32), task="a")], 4)
    [row] = predictions.rows(answers, ENCODER, 4)
    assert (row["prompt"], row["answer"], row["truth"], row["correct"]) == ("What is number 1?", "no", "no", True)
    assert [(tile["tag"], tile.get("col"), tile.get("row")) for tile in row["tiles"]] == [
        ("<tile_1>", 0, 0), ("<tile_2>", 1, 0), ("<tile_global_thumbnail>", None, None)]
    assert all(tile["png"].startswith("data:image/png;base64,") for tile in row["tiles"])
    assert row["images"][0].startswith("data:image/png;base64,")
    assert write_predictions(tmp_path, [row]).read_text().count("\n") == 1


def test_gallery_follows_a_sample_that_got_fewer_tiles():
    crowded = replace(question(1, "no", size=(128, 32)), turns=(Turn("user", "<image>\n" + "why " * 85), Turn("assistant", "no")))
    encoded = ENCODER.encode_prompt(crowded, reserve=4)
    [row] = predictions.rows(ask(always("no"), ENCODER, [crowded], 4), ENCODER, 4)
    assert 1 <= len(encoded.tiles) < 5 and len(row["tiles"]) == len(encoded.tiles)


def test_gallery_keeps_right_and_wrong_ones_of_many():
    samples = [question(n, "no" if n % 10 else "yes", task="a") for n in range(100)]
    rows = predictions.rows(ask(always("no"), ENCODER, samples, 2), ENCODER, 2)
    assert len(rows) == predictions.SHOWN
    assert sum(not row["correct"] for row in rows) == 10
