"""Questions with choices: ScienceQA's and AI2D's forms."""

import pytest
from convert_toys import convert, lay_out, picture, said

RED = picture()
PROBLEM = {"question": "Which of these states is farthest north?", "choices": ["West Virginia", "Louisiana", "Arizona", "Oklahoma"],
           "answer": 0, "hint": "", "image": "image.png", "task": "closed choice", "grade": "grade2", "subject": "social science",
           "topic": "geography", "category": "Geography", "skill": "Read a map",
           "lecture": "Maps have four cardinal directions.", "solution": "…", "split": "train"}


def test_golden_scienceqa(tmp_path):
    root = lay_out(tmp_path / "ScienceQA", {"problems.json": {
        "1": PROBLEM, "2": {**PROBLEM, "image": None, "hint": "Look up.", "answer": 3}, "3": {**PROBLEM, "split": "test"},
        "4": {**PROBLEM, "answer": 4}}, "train/1/image.png": RED, "train/4/image.png": RED})
    found = convert(root, "multiple_choice", records="problems.json", at="*", id="_name", image="train/{_name}/{image}",
                    where="split=train", context=["hint", "lecture"])
    assert list(found.samples) == ["toy-problems-1", "toy-problems-2"]
    first, text = found.samples.values()
    asked = ("<image>\nMaps have four cardinal directions.\nWhich of these states is farthest north?\n"
             "A. West Virginia\nB. Louisiana\nC. Arizona\nD. Oklahoma\nGive only the letter of your choice.")
    assert said(first) == [("user", asked), ("assistant", "A")]
    assert first.images == (RED,) and first.meta == {"task": "multiple_choice", "dataset": "toy", "answers": ["A"],
                                                     "choices": PROBLEM["choices"]}
    assert text.images == () and text.turns[0].text.startswith("Look up.\nMaps") and text.turns[1].text == "D"
    assert found.rejected == {"toy-problems-3": "not_selected", "toy-problems-4": "bad_answer"}


def test_ai2d_a_file_for_each_picture(tmp_path):
    root = lay_out(tmp_path / "ai2d", {"questions/0.png.json": {"imageName": "0.png", "questions": {
        "Which stage follows the egg?": {"abcLabel": False, "answerTexts": ["larva", "adult", "pupa"], "correctAnswer": 0,
                                         "questionId": "0.png-0"},
        "Which label shows the adult?": {"abcLabel": True, "answerTexts": ["B", "A", "C"], "correctAnswer": 2, "questionId": "0.png-1"}}},
        "questions/1.png.json": {"imageName": "1.png", "questions": {}}, "images/0.png": RED})
    found = convert(root, "multiple_choice", records="questions/*.json", at=".", items="questions.*", images="images", image="imageName",
                    question="_name", choices="answerTexts", answer="correctAnswer")
    (_, first), (key, second) = found.samples.items()
    assert key.startswith("toy-questions-0_png-") and key.endswith("-1") and found.manifest["units"] == 1
    assert first.turns[0].text.startswith("<image>\nWhich stage follows the egg?\nA. larva\nB. adult\nC. pupa\n")
    assert (first.turns[1].text, second.turns[1].text) == ("A", "C") and list(found.rejected.values()) == ["bad_field"]


@pytest.mark.parametrize("answer, letter", [(1, "B"), ("1", "B"), ("B", "B"), ("(c)", "C"), ("c.", "C"), ("blue", "B"), (2.0, "C")])
def test_forms_of_the_answer(tmp_path, answer, letter):
    root = lay_out(tmp_path / "mc", {"a.json": [{"question": "?", "choices": ["red", "blue", "green"], "answer": answer}]})
    assert convert(root, "multiple_choice", records="a.json").only.turns[1].text == letter


def test_numbers_may_count_from_one(tmp_path):
    root = lay_out(tmp_path / "mc", {"a.json": [{"question": "?", "choices": ["red", "blue"], "answer": number} for number in (1, 2, 0)]})
    found = convert(root, "multiple_choice", records="a.json", first=1)
    assert [sample.turns[1].text for sample in found.samples.values()] == ["A", "B"] and found.rejected == {"toy-a-2": "bad_answer"}


@pytest.mark.parametrize("change, reason", [
    ({"choices": ["a"]}, "bad_choices"), ({"choices": "ab"}, "bad_choices"), ({"choices": ["a", "a"]}, "bad_choices"),
    ({"choices": ["a", ""]}, "empty_text"), ({"choices": [str(number) + "x" for number in range(27)]}, "bad_choices"),
    ({"answer": "neither"}, "bad_answer"), ({"answer": -1}, "bad_answer"), ({"answer": None}, "empty_text"),
    ({"question": " "}, "empty_text")])
def test_what_cannot_be_asked_is_rejected(tmp_path, change, reason):
    good = {"question": "?", "choices": ["red", "blue"], "answer": 0}
    root = lay_out(tmp_path / "mc", {"a.json": [{**good, **change}, good]})
    assert convert(root, "multiple_choice", records="a.json").rejected == {"toy-a-0": reason}
