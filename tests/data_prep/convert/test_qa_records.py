"""Questions and answers of JSON, JSON lines and CSV, with the fields' names as options."""

import pytest
from convert_toys import convert, lay_out, picture, said

from nvlm_train.errors import DataError

RED = picture()


def texts(found) -> list[str]:
    return [sample.turns[-1].text for sample in found.samples.values()]


def test_golden_chartqa(tmp_path):
    root = lay_out(tmp_path / "ChartQA", {
        "train/train_human.json": [{"imgname": "41699051005347.png", "query": "How many food item is shown in the bar graph?",
                                    "label": "14"}],
        "train/train_augmented.json": [{"imgname": "two_col_1.png", "query": "In what year?", "label": "2018"}],
        "train/png/41699051005347.png": RED})
    found = convert(root, "qa_records", records=["train/train_human.json", "train/train_augmented.json"], images="train/png",
                    image="imgname", question="query", answer="label", style="chart")
    assert list(found.samples) == ["toy-train-train_human-0"] and found.only.images == (RED,)
    asked = "<image>\nHow many food item is shown in the bar graph?\nGive only the value or label that the figure shows."
    assert said(found.only) == [("user", asked), ("assistant", "14")]
    assert found.only.meta == {"task": "vqa", "dataset": "toy", "answers": ["14"]}
    assert found.rejected == {"toy-train-train_augmented-0": "missing_image"}


def test_dvqa(tmp_path):
    root = lay_out(tmp_path / "DVQA", {"train_qa.json": [
        {"question": "What is the value of the largest bar?", "question_id": "train_00", "template_id": "data", "answer": 9,
         "image": "bar_train_00000001.png", "answer_bbox": []}], "images/bar_train_00000001.png": RED})
    found = convert(root, "qa_records", records="train_qa.json", images="images", id="question_id")
    assert list(found.samples) == ["toy-train_qa-train_00"] and texts(found) == ["9"]


def test_plotqa(tmp_path):
    pairs = [{"question_string": "What is the difference?", "question_id": number, "image_index": 7, "qid": "Q", "type": "bar",
              "answer": answer, "answer_bbox": [], "template": "arithmetic"} for number, answer in enumerate([0.5, 12.0, "Yes"])]
    root = lay_out(tmp_path / "PlotQA", {"qa_pairs.json": {"qa_pairs": pairs}, "png/7.png": RED})
    found = convert(root, "qa_records", records="qa_pairs.json", at="qa_pairs", images="png", image="{image_index}.png",
                    question="question_string", style="chart")
    assert texts(found) == ["0.5", "12", "Yes"] and all(sample.images == (RED,) for sample in found.samples.values())


def test_gqa_an_object_of_records(tmp_path):
    root = lay_out(tmp_path / "GQA", {"q.json": {
        "02930152": {"imageId": "2354786", "question": "Is the sky dark?", "answer": "yes",
                     "fullAnswer": "Yes, the sky is dark."}}, "2354786.jpg": RED})
    found = convert(root, "qa_records", records="q.json", at="*", image="{imageId}.jpg", id="_name")
    assert list(found.samples) == ["toy-q-02930152"] and texts(found) == ["yes"]


OCR_VQA = {"0006": {"imageURL": "http://ecx/51.jpg", "answers": ["Sandra Boynton", "No"],
                    "questions": ["Who wrote this book?", "Is it a travel book?"],
                    "title": "Mom's", "split": 1},
           "0007": {"imageURL": "http://ecx/52.jpg", "answers": ["one"], "questions": ["a?", "b?"], "split": 1},
           "0008": {"imageURL": "http://ecx/53.jpg", "answers": ["x"], "questions": ["held out?"], "split": 3}}


@pytest.mark.parametrize("turns, keys", [("joined", ["toy-dataset-0006"]), ("single", ["toy-dataset-0006-0", "toy-dataset-0006-1"])])
def test_ocrvqa_lists_of_questions_and_of_answers(tmp_path, turns, keys):
    root = lay_out(tmp_path / "OCR-VQA", {"dataset.json": OCR_VQA, **{f"images/{name}.jpg": RED for name in OCR_VQA}})
    found = convert(root, "qa_records", records="dataset.json", at="*", id="_name", images="images", image="{_name}.jpg",
                    question="questions", answer="answers", turns=turns, where="split=1")
    assert list(found.samples) == keys
    assert [turn.text for sample in found.samples.values() for turn in sample.turns if turn.role == "assistant"] == ["Sandra Boynton", "No"]
    assert found.rejected == {"toy-dataset-0007": "bad_field", "toy-dataset-0008": "not_selected"}
    assert found.details["toy-dataset-0007"] == "2 in questions, 1 in answers"


def test_the_commonest_answer_is_trained(tmp_path):
    root = lay_out(tmp_path / "TextVQA", {"t.json": {"dataset_type": "train", "data": [
        {"question": "what is the brand?", "image_id": "0054c9", "question_id": 0, "answers": ["nous", "dakota", "dakota", "clos", ""]}]},
        "train_images/0054c9.jpg": RED})
    found = convert(root, "qa_records", records="t.json", at="data", images="train_images", image="{image_id}.jpg", answer="answers")
    assert texts(found) == ["dakota"] and found.only.meta["answers"] == ["nous", "dakota", "dakota", "clos"]


def test_vizwiz_answers_are_objects(tmp_path):
    root = lay_out(tmp_path / "VizWiz", {"train.json": [{"image": "VizWiz_train_00000000.jpg", "question": "What's the name?", "answers": [
        {"answer_confidence": "yes", "answer": answer} for answer in ("beach", "basil", "basil")], "answer_type": "other"}],
        "train/VizWiz_train_00000000.jpg": RED})
    assert texts(convert(root, "qa_records", records="train.json", images="train", answer="answers")) == ["basil"]


def test_nested_lists(tmp_path):
    genome = [{"id": 1, "qas": [{"image_id": 1, "qa_id": 10, "question": "What color is the clock?", "answer": "Green."},
                                {"image_id": 1, "qa_id": 11, "question": "How many?", "answer": ""},
                                {"image_id": 1, "qa_id": 12, "question": "Where?", "answer": "Left."}]}, {"id": 2, "qas": []}]
    root = lay_out(tmp_path / "VG", {"question_answers.json": genome, "1.jpg": RED})
    single = convert(root, "qa_records", records="question_answers.json", items="qas", image="{id}.jpg")
    assert list(single.samples) == ["toy-question_answers-0-0", "toy-question_answers-0-2"] and texts(single) == ["Green.", "Left."]
    assert single.rejected == {"toy-question_answers-0-1": "empty_text", "toy-question_answers-1": "bad_field"}
    joined = convert(root, "qa_records", records="question_answers.json", items="qas", image="{id}.jpg", turns="joined")
    assert joined.rejected == single.rejected
    assert list(joined.samples) == ["toy-question_answers-0"]
    assert len(joined.only.turns) == 4 and joined.only.turns[2].text.startswith("Where?")


def test_words_that_answers_stand_for(tmp_path):
    root = lay_out(tmp_path / "FigureQA", {"qa_pairs.json": {"total": 2, "qa_pairs": [
        {"question_string": "Is Red the minimum?", "image_index": 0, "answer": answer} for answer in (0, 1)]}, "png/0.png": RED})
    found = convert(root, "qa_records", records="qa_pairs.json", at="qa_pairs", images="png", image="{image_index}.png",
                    question="question_string", words="0=No,1=Yes")
    assert texts(found) == ["No", "Yes"]


@pytest.mark.parametrize("name, content", [("a.csv", 'image,question,answer\r\na.png,"What, and where?",red\r\n'),
                                           ("a.tsv", "image\tquestion\tanswer\na.png\tWhat, and where?\tred\n")])
def test_csv(tmp_path, name, content):
    root = lay_out(tmp_path / "csv", {name: content, "a.png": RED})
    sample = convert(root, "qa_records", records=name, style="open").only
    assert sample.key == "toy-a-0" and said(sample) == [("user", "<image>\nWhat, and where?"), ("assistant", "red")]


def test_text_only(tmp_path):
    root = lay_out(tmp_path / "qa", {"a.jsonl": [{"question": "{braces}?", "answer": "kept"}]})
    assert said(convert(root, "qa_records", records="a.jsonl", image="", style="open").only)[0] == ("user", "{braces}?")


@pytest.mark.parametrize("content, at, says", [
    (b'{"data": [', "", "is not JSON: .*line 1"), (b'{"data": "\xff"}', "", "is not UTF-8 .byte 10"), (b'{"data": []}', "", "option `at`"),
    (b'{"data": []}', "rows", "no 'rows' at the top .an object with 1 names: data."), (b"[]", "data", "no 'data' at the top .a list."),
    (b"[" * 200_000, "", "is not JSON")], ids=["cut", "latin", "object", "no such", "list", "deep"])
def test_bad_files_are_errors(tmp_path, content, at, says):
    root = lay_out(tmp_path / "qa", {"a.json": content})
    with pytest.raises(DataError, match=says):
        convert(root, "qa_records", records="a.json", at=at or "")
