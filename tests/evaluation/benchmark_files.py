"""Tiny benchmarks in the files and fields of the public releases. What they ask is made up.

`WRITERS[name](folder)` writes one and returns, for each of its questions, an answer that its scorer holds right.
"""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow
from PIL import Image
from pyarrow import parquet


def picture(color="red", size=(32, 24)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


def stored(color="red") -> dict:
    """A picture as hubs store it."""
    return {"bytes": picture(color), "path": f"{color}.png"}


def write_parquet(path: Path, rows: list[dict], rows_a_group: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=rows_a_group)


def mmmu(folder: Path) -> list[str]:
    def row(subject, number, question, options, answer, kind, *images):
        pictures = {f"image_{place}": None for place in range(1, 8)}
        pictures.update({f"image_{place}": image for place, image in enumerate(images, 1)})
        return {"id": f"validation_{subject}_{number}", "question": question, "options": str(options), "explanation": "?", **pictures,
                "img_type": "['Diagrams']", "answer": answer, "topic_difficulty": "Easy", "question_type": kind, "subfield": "x"}

    # The type of an all-empty column is that of the full one, as in the public files.
    art = [row("Art", 1, "<image 1> Who painted this?", ["Ann", "Ben", "Cai"], "B", "multiple-choice", stored(), stored("blue")),
           row("Art", 2, "Which looks like <image 2>?", ["<image 1>", "none"], "A", "multiple-choice", stored(), stored("blue"))]
    design = [row("Art_Theory", 1, "How many in <image 1>?", [], "['24/7', '3.43']", "open", stored(), stored("blue"))]
    write_parquet(folder / "Art" / "validation-00000-of-00001.parquet", art)
    write_parquet(folder / "Art_Theory" / "validation-00000-of-00001.parquet", design)
    return ["B", "(A)", "so the answer is 3.429"]


def mathvista(folder: Path) -> list[str]:
    def row(pid, query, answer, choices, kind, precision, task):
        return {"pid": pid, "question": query, "image": f"images/{pid}.jpg", "decoded_image": stored(), "choices": choices, "unit": None,
                "precision": precision, "answer": answer, "question_type": "multi_choice" if choices else "free_form", "answer_type": kind,
                "metadata": {"task": task, "split": "testmini", "skills": ["arithmetic"]}, "query": f"Hint: please.\nQuestion: {query}"}
    write_parquet(folder / "data" / "testmini-00000-of-00001-725687bf7a18d64b.parquet", [
        row("1", "What share?", "1.2", None, "float", 1.0, "figure question answering"),
        row("2", "Which?\nChoices:\n(A) yes\n(B) no", "no", ["yes", "no"], "text", None, "geometry problem solving"),
        row("3", "How many?", "14", None, "integer", None, "math word problem")])
    return ["I add both, so it is 1.2", "(B)", "The number missing is 14."]


def vqav2(folder: Path) -> list[str]:
    head = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
    ten = [{"answer": "yes" if place < 7 else "no", "answer_confidence": "maybe", "answer_id": place + 1} for place in range(10)]
    asked = [{"image_id": 42, "question": "Is it red?", "question_id": 42000}, {"image_id": 7, "question": "Is it blue?", "question_id": 7001}]
    told = [{"question_type": "is it", "multiple_choice_answer": "yes", "answers": ten, "image_id": one["image_id"], "answer_type": "yes/no",
             "question_id": one["question_id"]} for one in asked]
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({**head, "questions": asked}))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({**head, "annotations": told}))
    coco_pictures(folder, (42, 7))
    return ["Yes.", "the yes"]


def coco_pictures(folder: Path, numbers) -> None:
    (folder / "val2014").mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / "val2014" / f"COCO_val2014_{number:012d}.jpg").write_bytes(picture())


def textvqa(folder: Path) -> list[str]:
    rows = [{"question": "what is the brand?", "image_id": f"0{place}b", "image_classes": ["Bottle"], "question_tokens": ["what"],
             "flickr_original_url": "", "flickr_300k_url": "", "image_width": 32, "image_height": 24, "answers": ["nous les gosses"] * 10,
             "question_id": 34602 + place, "set_name": "val"} for place in range(2)]
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps({"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1",
                                                               "data": rows}))
    (folder / "train_images").mkdir()
    for row in rows:
        (folder / "train_images" / f"{row['image_id']}.jpg").write_bytes(picture())
    return ["Nous les gosses", "nous les gosses?"]


def ai2d(folder: Path) -> list[str]:
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", [
        {"question": f"Which part is number {place}?", "options": ["leaf", "root", "stem", "bud"], "answer": str(place), "image": stored()}
        for place in range(3)])
    return ["A", "B. root", "It is the stem"]


def chartqa(folder: Path) -> list[str]:
    write_parquet(folder / "data" / "test-00000-of-00001-e2cd0b7a0f9eb20d.parquet", [
        {"type": "human_test", "question": "How many?", "answer": "14", "image": stored()},
        {"type": "augmented_test", "question": "Which?", "answer": "Inspired", "image": stored()}])
    return ["14.5", "inspired"]


def docvqa(folder: Path) -> list[str]:
    write_parquet(folder / "DocVQA" / "validation-00000-of-00001.parquet", [
        {"questionId": str(49153 + place), "question": "What is the value?", "question_types": ["figure/diagram"], "image": stored(),
         "docId": 14465, "ucsf_document_id": "pybv0228", "ucsf_document_page_no": "81", "answers": ["0.28", "0.280"]} for place in range(2)])
    return ["0.28", " 0.280 "]


def realworldqa(folder: Path) -> list[str]:
    ask = "Please answer directly with only the letter of the correct option and nothing else."
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", [
        {"image": stored(), "question": f"Which way?\n\nA. Left\nB. Right\nC. Neither\n{ask}", "answer": "B"},
        {"image": stored(), "question": "How many cars? Please answer directly with a single word or number.", "answer": "2"}])
    return ["B", "2."]


def ocrbench(folder: Path) -> list[str]:
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", [
        {"dataset": "IIIT5K", "question": "what is written in the image?", "question_type": "Regular Text Recognition",
         "answer": ["CENTRE"], "image": stored()},
        {"dataset": "HME100k", "question": "Please write out the expression.", "question_type": "Handwritten Mathematical Expression Recognition",
         "answer": ["\\frac { 1 } { 2 }"], "image": stored()}])
    return ["It says Centre", "\\frac{1}{2}"]


def mmlu(folder: Path) -> list[str]:
    for part, rows in (("dev", 5), ("test", 2)):
        (folder / part).mkdir()
        for subject in ("abstract_algebra", "world_religions"):
            with (folder / part / f"{subject}_{part}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([f"{subject}, question {row}?\nSecond line", "one", "two, too", "three", "four", "ABCD"[row % 4]]
                                           for row in range(rows))
    return ["A", "B.", "(A)", "two, too"]


def gsm8k(folder: Path) -> list[str]:
    rows = [{"question": "3 and 4?", "answer": "We add 3+4 = <<3+4=7>>7.\n#### 7"}, {"question": "Salary?", "answer": "It is 7.\n#### 70,000"}]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["3 + 4 = 7", "So the answer is $70,000."]


def math(folder: Path) -> list[str]:
    for subject, kind in (("algebra", "Algebra"), ("number_theory", "Number Theory")):
        (folder / "test" / subject).mkdir(parents=True)
        for number in (2, 10):
            (folder / "test" / subject / f"{number}.json").write_text(json.dumps(
                {"problem": "Halve $1$.", "level": "Level 1", "type": kind, "solution": "We halve: $\\boxed{\\frac{1}{2}}$."}))
    return ["\\boxed{1/2}", "so \\boxed{\\frac12}", "$0.5$", "\\dfrac{1}{2}"]


def humaneval(folder: Path) -> list[str]:
    rows = [{"task_id": f"HumanEval/{number}", "prompt": f'def {name}(x):\n    """ Twice x.\n    >>> {name}(2)\n    4\n    """\n',
             "entry_point": name, "canonical_solution": "    return x * 2\n",
             "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate(2) == 4\n    assert candidate('a') == 'aa'\n"}
            for number, name in enumerate(("double", "twice"))]
    with gzip.open(folder / "HumanEval.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return ["    return x + x\n", "Sure:\n```python\ndef twice(x):\n    return 2 * x\n```\nDone."]


def coco(folder: Path) -> list[str]:
    said = {391895: ["A man rides a dirt bike on a road.", "A man on a motorcycle"], 60623: ["A girl eats a slice of cake.", "A girl with a cake"]}
    (folder / "coco_karpathy_test_gt.json").write_text(json.dumps({
        "annotations": [{"image_id": number, "caption": caption, "id": place} for number, captions in said.items()
                        for place, caption in enumerate(captions)], "images": [{"id": number} for number in said]}))
    coco_pictures(folder, said)
    return ["a man rides a dirt bike on a road", "a girl eats a slice of cake"]


WRITERS = {"mmmu": mmmu, "mathvista": mathvista, "vqav2": vqav2, "textvqa": textvqa, "ai2d": ai2d, "ai2d_no_mask": ai2d, "chartqa": chartqa,
           "docvqa": docvqa, "realworldqa": realworldqa, "ocrbench": ocrbench, "mmlu": mmlu, "gsm8k": gsm8k, "math": math,
           "humaneval": humaneval, "coco": coco}
