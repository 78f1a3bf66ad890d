"""Tiny benchmarks in the forms of the packages that bring some, and packages as pip leaves them, with nothing to import."""

import json
from pathlib import Path

from benchmark_files import picture


def easy_vqa(folder: Path) -> list[str]:
    (folder / "questions.json").write_text(json.dumps([["what shape is it?", "circle", 0], ["is it red?", "yes", 1], ["what is it?", "box", 1]]))
    (folder / "images").mkdir()
    for number in range(2):
        (folder / "images" / f"{number}.png").write_bytes(picture())
    return ["circle", "Yes.", "a box"]


def few_shot(samples: list[tuple[str, str]], **more: object) -> str:
    """A task's YAML file, with the tag by which some files name code."""
    tree = {"task": "x", "fewshot_config": {"sampler": "first_n", "samples": [{"question": q, "target": t} for q, t in samples]}, **more}
    return f"{json.dumps(tree)[:-1]}, doc_to_text: !function utils.doc_to_text}}\n"


def mmlu_dev(folder: Path) -> list[str]:
    algebra = [(f"Number {place}?\n(A) one (B) two, (A) or not (C) three\n(D) four", f"Let's think. The answer is ({letter}).")
               for place, letter in enumerate("BD")]
    chemistry = [("Lines of (CH3)?\n(A) 4 (B) 3 (C) 6 (D) 24 (E) 8", "Two times four. The answer is (E).\n\n"),
                 ("Which?\n(A) O\n(B) N\n(C) C\n(D) H", "The answer is (A)."), ("Which?\n(A) O\n(B) N\n(C) C\n(D) H", "The answer is (A).")]
    (folder / "mmlu_abstract_algebra.yaml").write_text(few_shot(algebra))
    (folder / "mmlu_college_chemistry.yaml").write_text(few_shot(chemistry))
    (folder / "_template.yaml").write_text("not: asked\n")
    return ["B", "(D)", "E", "A", "A."]


def gsm8k_examples(folder: Path) -> list[str]:
    (folder / "gsm8k-cot.yaml").write_text(few_shot([
        ("1 and 2?", "We add 1 + 2 = 3. The answer is 3."), ("A salary?", "Times 1,000. The answer is 70,000."), ("Half?", "The answer is 0.5.")]))
    return ["The answer is 3.", "$70000", "0.5"]


PACKAGED = {"easy_vqa": easy_vqa, "mmlu_dev": mmlu_dev, "gsm8k_examples": gsm8k_examples}


def installed(place: Path, name: str, version: str, folder: str) -> Path:
    """A package in `place` as `pip install --target place` leaves it, its module being one that cannot be imported; the folder is empty."""
    module, information = place / folder.split("/")[0], place / f"{name.replace('-', '_')}-{version}.dist-info"
    for path in (place / folder, information):
        path.mkdir(parents=True, exist_ok=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (module / "__init__.py").write_text("raise RuntimeError('imported')\n")
    return place / folder
