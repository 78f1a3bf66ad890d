"""VQA v2, in the form of v2_OpenEnded_mscoco_train2014_questions.json and v2_mscoco_train2014_annotations.json."""

import pytest
from convert_toys import convert, lay_out, picture, said


def question(image: int, number: int, text: str) -> dict:
    return {"image_id": image, "question": text, "question_id": number}


def annotation(image: int, number: int, answers: list[str]) -> dict:
    return {"question_type": "what is this", "multiple_choice_answer": max(answers, key=answers.count), "image_id": image,
            "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": place} for place, answer in enumerate(answers, 1)],
            "answer_type": "other", "question_id": number}


QUESTIONS = {
    "info": {"description": "This is v2.0 of the VQA dataset.", "version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco",
    "license": {"name": "Creative Commons Attribution 4.0 International License"}, "data_subtype": "train2014",
    "questions": [question(458752, 458752000, "What is this photo taken looking through?"), question(262146, 262146000, "What color?"),
                  question(458752, 458752001, "What position is this man playing?"), question(458752, 458752002, "Unanswered?"),
                  question(458752, 458752003, "")],
}
ANNOTATIONS = {
    "info": QUESTIONS["info"], "data_type": "mscoco", "data_subtype": "train2014", "license": QUESTIONS["license"],
    "annotations": [annotation(458752, 458752000, ["net"] * 8 + ["netting", "mesh"]), annotation(262146, 262146000, ["red"] * 10),
                    annotation(458752, 458752001, ["pitcher"] * 9 + ["catcher"]), annotation(458752, 458752003, ["no"]),
                    annotation(262146, 99, ["stray"] * 10)],
}
OPTIONS = {"questions": "questions.json", "annotations": "annotations.json", "images": "train2014"}


@pytest.fixture
def root(tmp_path):
    return lay_out(tmp_path / "vqa", {"questions.json": QUESTIONS, "annotations.json": ANNOTATIONS,
                                      "train2014/COCO_train2014_000000458752.jpg": picture()})


def test_golden_conversation_of_an_image(root):
    found = convert(root, "vqa", **OPTIONS)
    assert list(found.samples) == ["toy-458752"] and len(found.only.images) == 1
    assert said(found.only) == [
        ("user", "<image>\nWhat is this photo taken looking through?\nKeep the answer to a few words."), ("assistant", "net"),
        ("user", "What position is this man playing?\nAnswer with a word or a short phrase."), ("assistant", "pitcher")]
    assert found.only.meta == {"task": "vqa", "dataset": "toy", "image_id": 458752, "question_id": 458752001,
                               "answers": ["pitcher"] * 9 + ["catcher"]}
    assert found.rejected == {"toy-458752-458752002": "no_annotation", "toy-458752-458752003": "empty_text",
                              "toy-262146": "missing_image", "toy-262146-99": "unknown_question"}


def test_a_sample_for_each_question(root):
    found = convert(root, "vqa", turns="single", **OPTIONS)
    assert {key: sample.turns[1].text for key, sample in found.samples.items()} == {
        "toy-458752-458752000": "net", "toy-458752-458752001": "pitcher"}
    assert found.samples["toy-458752-458752000"].meta["answers"] == ["net"] * 8 + ["netting", "mesh"]
    assert found.rejected["toy-262146-262146000"] == "missing_image"
    assert "COCO_train2014_000000262146.jpg" in found.details["toy-262146-262146000"]


def test_ok_vqa_has_answers_alone(root):
    bare = [{key: value for key, value in one.items() if key != "multiple_choice_answer"} for one in ANNOTATIONS["annotations"]]
    lay_out(root, {"annotations.json": {**ANNOTATIONS, "annotations": bare}})
    found = convert(root, "vqa", turns="single", **OPTIONS)
    assert found.samples["toy-458752-458752000"].turns[1].text == "net"
    assert found.samples["toy-458752-458752001"].meta["answers"] == ["pitcher"] * 9 + ["catcher"]
