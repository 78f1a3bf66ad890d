"""Every benchmark's recipe on files of the public form: what is asked, with which pictures, what is right; and files of another form."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_files import WRITERS, picture, stored, vqav2, write_parquet
from package_files import PACKAGED

import nvlm_train
from nvlm_train.config.benchmark import Shot, benchmark_names, load_benchmark
from nvlm_train.config.compose import compose, recipes_dir
from nvlm_train.data.images import image_size
from nvlm_train.errors import ConfigError, DataError
from nvlm_train.evaluation.benchmark.marking import ALL, ONE, check_scorer, marked
from nvlm_train.evaluation.benchmark.questions import Questions
from nvlm_train.evaluation.readers import READERS, SHARDS

RECIPES = recipes_dir() / "eval"
NAMES = benchmark_names(RECIPES)
TEXT_ONLY = {"mmlu", "gsm8k", "math", "humaneval", "mmlu_dev", "gsm8k_examples"}
MADE = {**WRITERS, **PACKAGED}
WITHOUT_FILES = {"demo", "demo_sums", "reasoning_gym"}


@pytest.fixture(params=list(MADE))
def made(request, tmp_path):
    """(benchmark with the fixture's number of questions, its folder, right answers)"""
    answers = MADE[request.param](tmp_path)
    return replace(load_benchmark(request.param, RECIPES), count=len(answers)), str(tmp_path), answers


def written(name: str, folder: Path):
    answers = WRITERS[name](folder)
    return replace(load_benchmark(name, RECIPES), count=len(answers))


def test_every_recipe_is_tried_here_and_names_what_there_is():
    assert set(NAMES) == {*MADE, *WITHOUT_FILES} and len(NAMES) == 21
    for name in NAMES:
        benchmark = load_benchmark(name, RECIPES)
        check_scorer(benchmark)
        assert benchmark.reader in READERS or benchmark.reader == SHARDS
        assert benchmark.count > 0 or name in ("demo", "demo_sums")
        assert benchmark.source and benchmark.title and 1 <= benchmark.max_new_tokens <= 1024


def test_right_answers_are_right_and_others_are_not(made):
    benchmark, folder, answers = made
    questions = list(Questions(benchmark, [folder]))
    marks = marked(benchmark, answers, questions)
    best = 5.0 if benchmark.scorer == "cider" else 1.0
    assert all(mark.score >= best for mark in marks), [(mark, question.truths) for mark, question in zip(marks, questions, strict=True)]
    assert len({question.id for question in questions}) == benchmark.count
    for wrong in ("", "zebra crossing"):
        assert all(mark.score == 0.0 for mark in marked(benchmark, [wrong] * len(questions), questions)), wrong


def test_questions_have_their_pictures_and_places_for_them(made):
    benchmark, folder, _ = made
    for question in Questions(benchmark, [folder]):
        assert bool(question.images) == (benchmark.name not in TEXT_ONLY)
        assert question.turns[-1].role == "user" and question.turns[-1].text.count("<image>") == len(question.images)
        assert all(image_size(image) == (32, 24) for image in question.images)
        sample = question.sample(benchmark.name)
        assert (sample.turns[:-1], sample.turns[-1].text, sample.images) == (question.turns, "", question.images)
        assert not question.without_pictures().images


def test_a_folder_of_another_version_is_refused_with_both_numbers(made):
    benchmark, folder, answers = made
    with pytest.raises(DataError, match=rf"holds {len(answers)} questions, and {benchmark.name} has 12,345"):
        Questions(replace(benchmark, count=12345), [folder])


def test_an_empty_folder_is_told_what_belongs_there(made, tmp_path):
    benchmark = made[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="which is how the public release calls it"):
        Questions(benchmark, [str(tmp_path / "empty")])
    with pytest.raises(DataError, match="there is no such folder"):
        Questions(benchmark, [str(tmp_path / "none")])
    with pytest.raises(ConfigError, match="eval.data=FOLDER"):
        Questions(benchmark, [])


def test_what_is_asked(tmp_path):
    asked = {}
    for name in WRITERS:
        (tmp_path / name).mkdir()
        benchmark = written(name, tmp_path / name)
        asked[name] = [question.turns[-1].text for question in Questions(benchmark, [str(tmp_path / name)])]
    assert asked["mmmu"][1] == ("<image 1><image> <image 2><image>\nWhich looks like <image 2>?\nA. <image 1>\nB. none\n"
                                "Answer with the option's letter from the given choices directly.")
    assert asked["mmmu"][2] == "<image 1><image>\nHow many in <image 1>?\nAnswer the question directly."
    assert asked["mathvista"][0] == "<image>\nHint: please.\nQuestion: What share?"
    assert asked["ai2d"][0] == ("<image>\nWhich part is number 0?\nA. leaf\nB. root\nC. stem\nD. bud\n"
                                "Answer with the option's letter from the given choices directly.")
    assert asked["vqav2"][0] == "<image>\nIs it red?\nAnswer the question using a single word or phrase."
    assert asked["realworldqa"][1] == "<image>\nHow many cars? Please answer directly with a single word or number."
    assert asked["math"][0] == "Halve $1$.\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert asked["coco"] == ["<image>\nProvide a one-sentence caption for the provided image."] * 2
    assert asked["humaneval"][0].endswith('4\n    """\n```')


def test_mmlu_shows_five_examples_of_the_subject(tmp_path):
    first, *_, last = Questions(written("mmlu", tmp_path), [str(tmp_path)])
    assert [turn.role for turn in first.turns] == ["user", "assistant"] * 5 + ["user"]
    assert [turn.text for turn in first.turns[1::2]] == ["A", "B", "C", "D", "A"]
    assert all(turn.text.startswith("abstract_algebra, question") for turn in first.turns[::2])
    assert (first.id, last.id, last.category, last.choices[1]) == ("abstract_algebra/0", "world_religions/1", "world religions", "two, too")


def test_a_recipes_own_examples_come_first(tmp_path):
    benchmark = replace(written("gsm8k", tmp_path), shots=(Shot("1 and 1?", "2"), Shot("2 and 2?", "4")))
    question = next(iter(Questions(benchmark, [str(tmp_path)])))
    assert [(turn.role, turn.text) for turn in question.turns[:4]] == [
        ("user", "1 and 1?"), ("assistant", "2"), ("user", "2 and 2?"), ("assistant", "4")]
    assert question.turns[4].text.startswith("3 and 4?")


def test_fields_that_scorers_need(tmp_path):
    for name in ("mmmu", "mathvista", "realworldqa", "math"):
        (tmp_path / name).mkdir()
    art, _, theory = Questions(written("mmmu", tmp_path / "mmmu"), [str(tmp_path / "mmmu")])
    assert (art.category, theory.category) == ("Art", "Art_Theory")
    assert (theory.truths, theory.choices, len(theory.images)) == (("24/7", "3.43"), (), 1)
    share, which, _ = Questions(written("mathvista", tmp_path / "mathvista"), [str(tmp_path / "mathvista")])
    assert (share.kept, which.choices, share.category) == ({"answer_type": "float", "precision": 1}, ("yes", "no"), "figure question answering")
    way, cars = Questions(written("realworldqa", tmp_path / "realworldqa"), [str(tmp_path / "realworldqa")])
    assert (way.choices, cars.choices) == (("Left", "Right", "Neither"), ())
    ids = [question.id for question in Questions(written("math", tmp_path / "math"), [str(tmp_path / "math")])]
    assert ids == ["algebra/2", "algebra/10", "number_theory/2", "number_theory/10"]


def test_a_limit_spreads_over_the_files_and_reads_no_more(tmp_path):
    rows = [{"type": "human_test", "question": f"{place}?", "answer": str(place), "image": stored()} for place in range(10)]
    write_parquet(tmp_path / "data" / "test-0.parquet", rows[:6])
    write_parquet(tmp_path / "data" / "test-1.parquet", rows[6:])
    benchmark = replace(load_benchmark("chartqa", RECIPES), count=10)
    assert [question.truths for question in Questions(benchmark, [str(tmp_path)], limit=4)] == [("0",), ("2",), ("5",), ("7",)]
    questions = Questions(benchmark, [str(tmp_path)], limit=99)
    assert questions.count == 10 and [question.id for question in questions] == [f"{place:06d}" for place in range(10)]
    assert len(list(questions)) == 10       # and again


def test_a_placeholder_in_a_question_stays_text(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "What does <image> mean?", "answer": "#### 1"}) + "\n")
    [question] = Questions(replace(load_benchmark("gsm8k", RECIPES), count=1), [str(tmp_path)])
    assert "<image>" not in question.turns[-1].text and "What does < image> mean?" in question.turns[-1].text


# Files that are not what they should be

def test_other_columns_are_named(tmp_path):
    write_parquet(tmp_path / "data" / "test-0.parquet", [{"query": "?", "label": "1", "image": stored()}])
    with pytest.raises(DataError, match="no field 'answer'; it has query, label, image"):
        list(Questions(replace(load_benchmark("chartqa", RECIPES), count=1), [str(tmp_path)]))


def test_a_missing_picture_ends_it(tmp_path):
    benchmark = written("textvqa", tmp_path)
    (tmp_path / "train_images" / "01b.jpg").unlink()
    with pytest.raises(DataError, match=r"01b\.jpg.*must hold all pictures"):
        list(Questions(benchmark, [str(tmp_path)]))


def test_a_picture_outside_the_folder_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    benchmark = written("textvqa", tmp_path / "set")
    (tmp_path / "secret.jpg").write_bytes(picture())
    path = tmp_path / "set" / "TextVQA_0.5.1_val.json"
    path.write_text(path.read_text().replace('"00b"', '"../../secret"'))
    with pytest.raises(DataError, match="outside"):
        list(Questions(benchmark, [str(tmp_path / "set")]))


def test_questions_and_answers_of_different_releases(tmp_path):
    vqav2(tmp_path)
    path = tmp_path / "v2_mscoco_val2014_annotations.json"
    tree = json.loads(path.read_text())
    tree["annotations"] = tree["annotations"][:1]
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match="has 2 questions and .* answers to 1, 1 questions have none"):
        Questions(load_benchmark("vqav2", RECIPES), [str(tmp_path)])


def test_ids_that_repeat_are_refused(tmp_path):
    row = {"questionId": "1", "question": "?", "image": stored(), "answers": ["x"]}
    write_parquet(tmp_path / "DocVQA" / "validation-0.parquet", [row, row])
    with pytest.raises(DataError, match="two questions have the id '1'"):
        list(Questions(replace(load_benchmark("docvqa", RECIPES), count=2), [str(tmp_path)]))


def test_a_split_without_answers_is_refused(tmp_path):
    write_parquet(tmp_path / "DocVQA" / "validation-0.parquet", [{"questionId": "1", "question": "?", "image": stored(), "answers": None}])
    with pytest.raises(DataError, match="whose answers are not published"):
        list(Questions(replace(load_benchmark("docvqa", RECIPES), count=1), [str(tmp_path)]))


@pytest.mark.parametrize(("name", "file", "contents", "told"), [
    ("gsm8k", "test.jsonl", b'{"question": "?"', "line 1 is not whole JSON"),
    ("gsm8k", "test.jsonl", b"\xff\xfe", "cannot be read"),
    ("gsm8k", "test.jsonl", b'{"question": "?", "answer": "7"}', "without ####"),
    ("gsm8k", "test.jsonl", b"[1]", "must be an object"),
    ("humaneval", "HumanEval.jsonl.gz", b"no gzip", "cannot be read"),
    ("textvqa", "TextVQA_0.5.1_val.json", b'{"data": {}}', "a list of records is needed"),
    ("chartqa", "data/test-0.parquet", b"PAR1 and no more", "not a whole parquet file"),
    ("math", "test/algebra/1.json", b'{"problem": "?", "type": "x", "solution": "5"}', r"without \\boxed"),
    ("mmlu", "test/x_test.csv", b"one,two\n", "no dev/x_dev.csv"),
])
def test_damaged_files_are_named(tmp_path, name, file, contents, told):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(contents)
    with pytest.raises(DataError, match=told) as caught:
        list(Questions(replace(load_benchmark(name, RECIPES), count=0), [str(tmp_path)]))
    assert str(tmp_path) in str(caught.value)


def test_a_packed_file_that_unpacks_to_too_much(tmp_path, monkeypatch):
    benchmark = written("humaneval", tmp_path)
    monkeypatch.setattr("nvlm_train.evaluation.readers.files.MOST", 100)
    with pytest.raises(DataError, match="unpacks to more than 100 bytes"):
        Questions(benchmark, [str(tmp_path)])


def test_mmmu_options_are_read_and_never_run(tmp_path):
    row = {"id": "validation_Art_1", "question": "?", "options": "__import__('os').abort()", "answer": "A", "question_type": "multiple-choice"}
    write_parquet(tmp_path / "Art" / "validation-0.parquet", [row])
    with pytest.raises(DataError, match="a list written as Python writes it"):
        list(Questions(replace(load_benchmark("mmmu", RECIPES), count=1), [str(tmp_path)]))


# What is written of them

def test_the_table_of_docs_is_that_of_the_recipes():
    text = (Path(nvlm_train.__file__).resolve().parents[1] / "docs" / "benchmarks.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([\d,]*) ?\| .*\(`(\w+)`\) \| ([\d,]+) \| (.*) \|$", text, re.MULTILINE)
    told = {name: (count, scorer, longest) for name, count, scorer, longest, _ in rows}
    recipes = {name: load_benchmark(name, RECIPES) for name in NAMES}
    assert told == {name: (f"{recipe.count:,}" if recipe.count else "", recipe.scorer, f"{recipe.max_new_tokens:,}")
                    for name, recipe in recipes.items()}
    differences = re.findall(r"^\| `(\w+)` \|", text.split("## How the scorers are checked")[1], re.MULTILINE)
    assert {*differences, "exact"} == {*ONE, *ALL}


# Recipes that are not what they should be

def test_names_and_settings_of_recipes_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="did you mean mmmu"):
        load_benchmark("mmmuu", RECIPES)
    text = (RECIPES / "chartqa.yaml").read_text()
    (tmp_path / "odd.yaml").write_text(text.replace("scorer: relaxed", "scorerr: relaxed"))
    with pytest.raises(ConfigError, match="eval=odd: scorerr: unknown key; did you mean scorer"):
        load_benchmark("odd", tmp_path)
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="must hold settings"):
        load_benchmark("list", tmp_path)
    chartqa = load_benchmark("chartqa", RECIPES)
    with pytest.raises(ConfigError, match="no option 'slack', only tolerance"):
        check_scorer(replace(chartqa, options={"slack": 1.0}))
    with pytest.raises(ConfigError, match="no scorer is called 'relax'; did you mean relaxed"):
        check_scorer(replace(chartqa, scorer="relax"))


def test_a_run_knows_no_benchmark():
    with pytest.raises(ConfigError, match="eval=mmmu: a run knows no benchmark"):
        compose(["recipe=nvlm_d_tiny", "eval=mmmu"])
