"""Options are checked, keys are safe and unique, wording is our own, and the page of documentation names everything."""

import random
import string
from pathlib import Path

import pytest
from convert_toys import convert, lay_out, picture
from hypothesis import given
from hypothesis import strategies as st

from data_prep import phrases
from data_prep.convert import tables
from data_prep.convert.families import FAMILIES, converter
from data_prep.convert.keys import key_of
from data_prep.convert.options import options_of
from data_prep.prompts import PROMPTS, prompt
from data_prep.shards import check_new_key
from nvlm_train.errors import DataError

DOCS = Path(__file__).parents[3] / "docs" / "converters.md"


def refusal(root, family, name="toy", **options) -> str:
    with pytest.raises(DataError) as caught:
        converter(family, root, options, name)
    return str(caught.value)


def test_everything_wrong_with_the_options_is_told_at_once(tmp_path):
    told = refusal(tmp_path, "vqa", question="q.json", turns="both", image="a.jpg")
    assert "vqa has no option 'question'; did you mean questions?" in told
    assert "vqa: turns is one of joined, single, found 'both'" in told
    assert "vqa needs questions=…, annotations=…" in told and "image" not in told


@pytest.mark.parametrize("family, options, says", [
    ("coco_caption", {}, "did you mean coco_captions?"),
    ("chat", {"format": "qa", "records": "none.json"}, "no file 'none.json': looked at ROOT/none.json"),
    ("chat", {"format": "qa", "records": "*.jsonl"}, "no file '*.jsonl': looked at ROOT/*.jsonl"),
    ("chat", {"format": "qa", "records": "../a.json"}, "leaves the dataset's folder"),
    ("chat", {"format": "qa", "records": "/etc/passwd"}, "leaves the dataset's folder"),
    ("chat", {"format": "qa", "records": "b.pkl"}, "pickle runs code"),
    ("chat", {"format": "qa", "records": "a.txt"}, "records come in .json"),
    ("chat", {"format": "qa", "records": 7}, "records is one text or several"),
    ("chat", {"format": "qa", "records": []}, "records is one text or several"),
    ("chat", {"format": "qa", "records": "a.json", "question": 7}, "question is a text"),
    ("chat", {"format": "qa", "records": "a.json", "where": "split"}, "where is like split=train; found 'split'"),
    ("coco_captions", {"annotations": "a.*"}, "'a.*' is to be one file, and fits"),
    ("coco_captions", {"annotations": "a.json", "where": "split"}, "where is like split=train; found 'split'"),
    ("vqa", {"questions": "a.json", "annotations": "gone.json"}, "looked at ROOT/gone.json"),
    ("qa_records", {"records": "a.json", "images": "gone"}, "no folder of pictures at ROOT/gone"),
    ("qa_records", {"records": "a.json", "images": "../x"}, "leaves the dataset's folder"),
    ("qa_records", {"records": "a.json", "words": "no"}, "words are like 0=No,1=Yes; found 'no'"),
    ("multiple_choice", {"records": "a.json", "first": "-1"}, "first is a whole number from 0 on, found '-1'"),
    ("parquet", {"files": "a.parquet", "image": "a", "images": "b"}, "pictures come from one column"),
])
def test_wrong_options_are_told(tmp_path, family, options, says):
    root = lay_out(tmp_path / "set", {"a.json": [], "a.csv": "", "b.pkl": b"", "a.txt": "", "a.parquet": b""})
    assert says in refusal(root, family, **options).replace(str(root), "ROOT")


def test_names_and_folders(tmp_path):
    assert "starts all keys" in refusal(tmp_path, "chat", name="a.b", format="qa", records="a")
    assert "no folder at" in refusal(tmp_path / "gone", "chat", format="qa", records="a")


def test_options_come_from_a_command_line_or_yaml_alike(tmp_path):
    root = lay_out(tmp_path / "set", {"a.json": [], "b.json": [], "one/x": "", "two/x": ""})
    line = converter("qa_records", root, {"records": "a.json, b.json", "images": "one,two"}, "toy")
    assert line == converter("qa_records", root, {"records": ["a.json", "b.json"], "images": ["one", "two"]}, "toy")
    options = {"format": "visual_genome", "annotations": "a.json", "regions": "3"}
    assert converter("grounding", root, options, "toy") == converter("grounding", root, {**options, "regions": 3}, "toy")


def test_settings_know_options_and_content_but_not_the_place(tmp_path):
    def settings(folder: str, content: object, **options):
        root = lay_out(tmp_path / folder, {"a.json": content})
        return converter("chat", root, {"format": "qa", "records": "a.json", **options}, "toy").settings()

    first = settings("one", [{"question": "a"}])
    assert first == settings("two", [{"question": "a"}]) and "one" not in str(first)
    assert first != settings("two", [{"question": "b"}]) != settings("two", [{"question": "b"}], answer="label")


def test_units_are_of_a_fixed_number_of_records_and_processes_do_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "CUT", 3)
    rows = [{"question": f"{number}?", "answer": str(number)} for number in range(8)]
    root = lay_out(tmp_path / "set", {"a.json": rows, "b.jsonl": rows[:4], "c.csv": "question,answer\n1?,1\n"})
    source = converter("chat", root, {"format": "qa", "records": ["a.json", "b.jsonl", "c.csv"]}, "toy")
    assert source.units() == ["part-0000-0000", "part-0000-0001", "part-0000-0002", "part-0001-0000", "part-0001-0001", "part-0002-0000"]
    taken = [[kept.sample.key for kept in source.outcomes(unit)] for unit in source.units()]
    assert taken == [["toy-a-0", "toy-a-1", "toy-a-2"], ["toy-a-3", "toy-a-4", "toy-a-5"], ["toy-a-6", "toy-a-7"],
                     ["toy-b-0", "toy-b-1", "toy-b-2"], ["toy-b-3"], ["toy-c-0"]]


@pytest.mark.parametrize("parts, key", [((7,), "toy-7"), (("a", 12), "toy-a-12"), (("000000033471",), "toy-000000033471")])
def test_plain_ids_stay_as_they_are(parts, key):
    assert key_of("toy", *parts) == key


@given(st.lists(st.text(max_size=120), min_size=1, max_size=3), st.lists(st.text(max_size=120), min_size=1, max_size=3))
def test_any_ids_give_safe_keys_and_different_ones_different_keys(first, second):
    keys = [key_of("toy", *parts) for parts in (first, second)]
    for key in keys:
        check_new_key(key)
        assert key.startswith("toy-") and "." not in key and "/" not in key
    if "-".join(first) != "-".join(second):
        assert keys[0] != keys[1]


def test_prompts_are_chosen_by_the_key_each_about_as_often():
    for style, variants in PROMPTS.items():
        words = {name: f"<{name}>" for variant in variants for _, name, _, _ in string.Formatter().parse(variant) if name}
        chosen = [prompt(style, f"key-{number}", **words) for number in range(300)]
        assert chosen[:50] == [prompt(style, f"key-{number}", **words) for number in range(50)]
        assert set(chosen) == {variant.format(**words) for variant in variants}
        assert min(chosen.count(variant) for variant in set(chosen)) > 300 / len(variants) * 0.6
        assert all(f"<{name}>" in text for name in words for text in chosen)


def test_prompts_are_not_those_of_the_tiny_and_demo_data():
    there = {*phrases.CAPTION_REQUESTS, *phrases.READING_REQUESTS, *phrases.WORD_QUESTIONS, *phrases.NUMBER_QUESTIONS}
    ours = [variant for variants in PROMPTS.values() for variant in variants]
    assert len(ours) == len(set(ours)) and not there & set(ours)


def test_every_family_and_option_is_documented():
    families, common = DOCS.read_text(encoding="utf-8").split("## What comes out")[0].split("Options of all families")
    rows = {line.split("|")[1].strip(" `"): line for line in families.splitlines() if line.startswith("| `")}
    assert set(rows) == set(FAMILIES) and len(rows) == 12
    for family, kind in FAMILIES.items():
        missing = [name for name in options_of(kind) if f"`{name}`" not in rows[family]
                   and not (name in ("task", "where", "at", "id") and f"- `{name}`" in common)]
        assert not missing, f"{family}: {missing}"


def hostile(chance: random.Random) -> object:
    """A value that no record should hold."""
    return chance.choice([None, "", 0, -1, 1.5, True, [], {}, [None], {"a": 1}, "../x", "\0", "\ud800", "<image>", [[]], float("nan"),
                          "a" * 5000])


def spoiled(value: object, chance: random.Random) -> object:
    """The value with some parts of it replaced by hostile ones."""
    if chance.random() < 0.3:
        return hostile(chance)
    if isinstance(value, dict):
        return {name: spoiled(held, chance) for name, held in value.items()}
    return [spoiled(held, chance) for held in value] if isinstance(value, list) else value


@pytest.mark.parametrize("family, options, good", [
    ("conversations", {}, {"image": "a.png", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
    ("qa_records", {"items": "qas"}, {"image": "a.png", "qas": [{"question": "a", "answer": ["b"]}]}),
    ("multiple_choice", {"context": "hint"}, {"image": "a.png", "question": "a", "choices": ["b", "c"], "answer": 0, "hint": "d"}),
    ("rendered", {}, {"question": "a", "answer": "b"}),
    ("chat", {"format": "sharegpt"}, {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
    ("chat", {"format": "alpaca"}, {"instruction": "a", "input": "b", "output": "c"}),
    ("chat", {"format": "messages"}, {"messages": [{"role": "user", "content": "a"},
                                                   {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]}),
])
def test_whatever_a_record_holds_costs_that_record_alone(tmp_path, family, options, good):
    chance = random.Random(f"hostile/{family}")
    rows = [good, *(spoiled(good, chance) for _ in range(100)), good]
    root = lay_out(tmp_path / "set", {"a.json": rows, "a.png": picture()})
    found = convert(root, family, records="a.json", **options)
    assert found.manifest["in"] >= 102 and found.manifest["kept"] >= 2 and len(found.rejected) >= 20
    assert any(key.startswith("toy-a-101") for key in found.samples)


def captions(chance: random.Random, number: int) -> dict:
    return {"a.json": {"images": [{"id": n, "file_name": "a.png"} for n in range(number)],
                       "annotations": [{"image_id": n, "caption": spoiled("good", chance)} for n in range(number)]}}


def questions(chance: random.Random, number: int) -> dict:
    asked = [{"image_id": n, "question_id": n, "question": spoiled("good?", chance)} for n in range(number)]
    answered = [{"image_id": n, "question_id": n, "multiple_choice_answer": spoiled("good", chance),
                 "answers": spoiled([{"answer": "good", "answer_id": 1}], chance)} for n in range(number)]
    return {"q.json": {"questions": asked}, "a.json": {"annotations": answered}}


def phrases_and_boxes(chance: random.Random, number: int) -> dict:
    region = {"phrase": "good", "x": 9, "y": 9, "width": 9, "height": 9}
    return {"a.json": [{"id": n, "regions": [{name: spoiled(held, chance) for name, held in region.items()}]} for n in range(number)],
            **{f"{n}.jpg": picture() for n in range(number)}}


def scene_text(chance: random.Random, number: int) -> dict:
    line = {"transcription": "good", "points": [[1, 1], [9, 1], [9, 9], [1, 9]], "illegibility": False}
    return {"a.json": {f"gt_{n}": [spoiled(line, chance) if n % 2 else line] for n in range(number)},
            **{f"gt_{n}.jpg": picture() for n in range(number)}}


@pytest.mark.parametrize("family, options, make", [
    ("coco_captions", {}, captions), ("vqa", {"questions": "q.json", "image": "a.png"}, questions),
    ("grounding", {"format": "visual_genome"}, phrases_and_boxes), ("text_boxes", {"format": "art"}, scene_text)])
def test_whatever_an_annotation_holds_costs_its_picture_alone(tmp_path, family, options, make):
    root = lay_out(tmp_path / "set", {"a.png": picture(), **make(random.Random(f"hostile/{family}"), 100)})
    found = convert(root, family, annotations="a.json", **options)
    assert found.manifest["in"] == 100 and 5 <= found.manifest["kept"] <= 95


def test_nothing_is_asked_of_no_region(tmp_path):
    root = lay_out(tmp_path / "set", {"a.json": []})
    assert "regions is at least 1" in refusal(root, "grounding", format="visual_genome", annotations="a.json", regions=0)
    assert "regions is at least 1" in refusal(root, "text_boxes", format="art", annotations="a.json", regions="0")
