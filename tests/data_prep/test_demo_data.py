"""The demo's data: truthful, and disjoint between training and test."""

import re

import pytest

from data_prep import demo_data, easy_vqa_facts, exam_data, phrases, puzzles, rendered_text
from nvlm_train.data.images import image_size
from nvlm_train.data.tiling import tile_count

for package in ("easy_vqa", "skimage", "reasoning_gym", "matplotlib"):
    pytest.importorskip(package, reason="the demo's packages are not installed: pip install -e .[demo]")


def named(question, values):
    return next((value for value in values if re.search(rf"\b{value}\b", question)), None)


@pytest.mark.parametrize("split, pictures, known", [("train", 4000, 3503), ("test", 1000, 0)])
def test_every_answer_agrees_with_the_facts_drawn_from_the_others(split, pictures, known):
    found = easy_vqa_facts.pictures(split)
    assert len(found) == pictures
    checked = 0
    for picture in found:
        for question, answer in picture.questions:
            denied = bool(re.search(r"\b(no|not)\b", question))
            for fact, values in ((picture.color, phrases.COLORS), (picture.shape, phrases.SHAPES)):
                asked = named(question, values)
                if answer in values:
                    assert answer == fact
                    checked += 1
                elif fact and asked and answer in ("yes", "no"):
                    assert ((asked == fact) != denied) == (answer == "yes"), (picture, question)
                    checked += 1
    assert checked > 8 * pictures
    assert sum(bool(picture.color and picture.shape) for picture in found) >= known


def test_nothing_is_claimed_that_no_answer_tells():
    assert easy_vqa_facts.stated([("is there a red shape?", "no"), ("is there not a blue shape?", "yes")], phrases.COLORS) is None
    assert easy_vqa_facts.stated([("is there not a blue shape?", "no")], phrases.COLORS) == "blue"
    assert easy_vqa_facts.stated([("what is the teal shape?", "circle")], phrases.COLORS) == "teal"


def test_captions_say_only_what_is_known():
    assert phrases.shape_caption("red", "circle") == "a red circle."
    assert phrases.shape_caption(None, "triangle") == "a triangle."
    assert phrases.shape_caption("teal", None) == "a teal shape."
    with pytest.raises(ValueError, match="neither"):
        phrases.shape_caption(None, None)


def test_no_sum_of_the_test_split_is_trained_on():
    test, training = puzzles.test(100, seed=3), puzzles.training(2000, 100, seed=3)
    assert (len(test), len(training)) == (100, 2000)
    held_out = {puzzles.sum_in(question) for _, question, _ in test}
    assert len(held_out) == 100
    assert not held_out & {puzzles.sum_in(question) for _, question, _ in training}
    assert {task for task, _, _ in training} == set(puzzles.TASKS)


def test_sums_are_right():
    for _, question, answer in puzzles.test(100, seed=4):
        first, sign, second = puzzles.sum_in(question).split()
        assert int(answer) == int(first) + (int(second) if sign == "+" else -int(second))


def test_rendered_pictures_are_larger_than_a_tile_and_repeat_with_the_seed():
    found = rendered_text.pictures("train", 6, seed=1)
    assert {kind for kind, _, _ in found} == {"word", "number"}
    for kind, text, png in found:
        assert tile_count(*image_size(png), max_tiles=4, tile_size=64) == 3
        assert (text in phrases.WORDS) if kind == "word" else (10 <= int(text) <= 99)
    rendered_text.pictures.cache_clear()
    assert rendered_text.pictures("train", 6, seed=1) == found
    assert rendered_text.pictures("train", 6, seed=2) != found


def test_photographs_of_the_splits_are_disjoint():
    train, test = (set(rendered_text.BACKGROUNDS[split]) for split in ("train", "test"))
    assert train and test and not train & test


def test_samples_are_questions_with_pictures_in_place(monkeypatch):
    monkeypatch.setattr(demo_data, "RENDERED", 8)
    monkeypatch.setattr(demo_data, "PUZZLES", 50)
    monkeypatch.setattr(demo_data, "TEST", 20)
    expected = {"captions": 1, "transcripts": 1, "shapes": 1, "reading": 1, "text": 0, "told": 0, "easy_vqa_test": 1,
                "rendered_text_test": 1, "text_test": 0}
    assert set(demo_data.SETS) == set(expected)
    for name, make in demo_data.SETS.items():
        samples = list(make())
        assert len({sample.key for sample in samples}) == len(samples) > 0
        for sample in samples:
            roles = [turn.role for turn in sample.turns]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
            assert len(sample.images) == expected[name] == sample.turns[0].text.count("<image>\n")
        if name.endswith("_test"):
            assert len(samples) == 20 and all(len(sample.turns) == 2 for sample in samples)


def test_exam_shows_no_picture_of_the_demo():
    demo = [*demo_data.shape_test(), *demo_data.reading_questions("test", demo_data.TEST)]
    exam = [sample for make in exam_data.SETS.values() for sample in make()]
    assert len(exam) == 2 * exam_data.COUNT == len({sample.key for sample in exam})
    assert not {sample.images for sample in demo} & {sample.images for sample in exam}
