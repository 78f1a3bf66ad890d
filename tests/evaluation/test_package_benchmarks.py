"""Benchmarks out of installed packages: found without importing them, read as they are, never shown as their own examples."""

import gzip
import hashlib
import importlib.util
import json
from dataclasses import replace
from importlib import metadata

import pytest
from benchmark_files import WRITERS
from package_files import PACKAGED, few_shot, installed

from data_prep import demo_data, puzzles
from nvlm_train.config.benchmark import Generated, Package, benchmark_names, load_benchmark
from nvlm_train.config.compose import recipes_dir
from nvlm_train.errors import ConfigError, DataError
from nvlm_train.evaluation.benchmark.command import score_command
from nvlm_train.evaluation.benchmark.questions import Questions
from nvlm_train.evaluation.readers.generated import reasoning_gym
from nvlm_train.evaluation.readers.packages import folder_of

RECIPES = recipes_dir() / "eval"
IN_PACKAGES = [name for name in benchmark_names(RECIPES) if load_benchmark(name, RECIPES).package]


def test_these_are_in_packages():
    assert set(IN_PACKAGES) == {*PACKAGED, "humaneval", "reasoning_gym"}


@pytest.mark.parametrize("name", [*PACKAGED, "humaneval"])
def test_without_a_folder_the_package_is_read_and_not_imported(name, tmp_path, monkeypatch, capsys):
    benchmark = load_benchmark(name, RECIPES)
    package = benchmark.package
    answers = {**PACKAGED, **WRITERS}[name](installed(tmp_path, package.name, package.version, package.folder))
    monkeypatch.syspath_prepend(str(tmp_path))
    benchmark = replace(benchmark, count=len(answers))
    ids = [question.id for question in Questions(benchmark, [str(tmp_path / package.folder)])]
    rows = [json.dumps({"id": key, "answer": answer}) for key, answer in zip(ids, answers, strict=True)]
    (tmp_path / "answers.jsonl").write_text("\n".join(rows))
    score_command(benchmark, tmp_path / "answers.jsonl", None, 0, True)
    assert json.loads(capsys.readouterr().out)["score"] == 1.0


def test_a_package_that_is_not_as_it_must_be(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    package = Package("nvlm-some-set", "1.2", "nvlm_some_set/data")
    with pytest.raises(DataError, match="which is not installed: pip install --no-deps nvlm-some-set==1.2"):
        folder_of(package, "x")
    folder = installed(tmp_path, package.name, "1.3", package.folder)
    with pytest.raises(DataError, match="defined by nvlm-some-set 1.2, and 1.3 is installed"):
        folder_of(package, "x")
    package = replace(package, version="1.3")
    assert folder_of(package, "x") == folder
    folder.rmdir()
    with pytest.raises(DataError, match="is installed without .*force-reinstall"):
        folder_of(package, "x")


def test_examples_are_the_others_of_the_file(tmp_path):
    PACKAGED["mmlu_dev"](tmp_path)
    first, second, lines, oxygen, again = Questions(replace(load_benchmark("mmlu_dev", RECIPES), count=5), [str(tmp_path)])
    assert [(turn.role, turn.text.split("\n")[0]) for turn in first.turns] == [("user", "Number 1?"), ("assistant", "D"), ("user", "Number 0?")]
    assert first.choices == ("one", "two, (A) or not", "three", "four") and second.turns[1].text == "B"
    assert lines.choices == ("4", "3", "6", "24", "8") and lines.turns[-1].text.startswith("Lines of (CH3)?\nA. 4\n")
    # The two are the same question: neither shows the other's answer.
    assert len(oxygen.turns) == len(again.turns) == 3 and oxygen.turns[1].text == "E"
    assert (first.id, again.category) == ("mmlu_abstract_algebra/0", "college chemistry")


def test_examples_with_reasoning(tmp_path):
    PACKAGED["gsm8k_examples"](tmp_path)
    _, salary, _ = Questions(replace(load_benchmark("gsm8k_examples", RECIPES), count=3), [str(tmp_path)])
    assert [turn.text for turn in salary.turns] == ["1 and 2?", "We add 1 + 2 = 3. The answer is 3.", "Half?", "The answer is 0.5.", "A salary?"]
    assert salary.truths == ("70,000",)


@pytest.mark.parametrize(("name", "text", "told"), [
    ("mmlu_dev", few_shot([("Which? (A) x (B) y", "The answer is (A).")]), r"no options \(A\) to \(D\)"),
    ("mmlu_dev", few_shot([("Which?\n(A) a (B) b (C) c (D) d", "The answer is (E).")]), "not one `The answer is"),
    ("gsm8k_examples", few_shot([("Which?", "Nobody knows.")]), "not one `The answer is N"),
    ("gsm8k_examples", few_shot([("Which?", None)]), "must be text"),
    ("gsm8k_examples", "fewshot_config: {}\n", "has no examples as lm-eval"),
    ("gsm8k_examples", "a: [", "has no examples as lm-eval"),
    ("gsm8k_examples", "[" * 5000, "has no examples as lm-eval"),
    ("gsm8k_examples", "a: 2026-99-99", "has no examples as lm-eval"),
    ("gsm8k_examples", "a: !!python/object/apply:os.abort []\n", "has no examples as lm-eval")])
def test_files_of_another_version(tmp_path, name, text, told):
    (tmp_path / {"mmlu_dev": "mmlu_x.yaml", "gsm8k_examples": "gsm8k-cot.yaml"}[name]).write_text(text)
    with pytest.raises(DataError, match=told):
        list(Questions(replace(load_benchmark(name, RECIPES), count=1), [str(tmp_path)]))


@pytest.mark.parametrize("text", ['{"questions": []}', '[["what?", "this"]]'])
def test_another_form_of_easy_vqa(tmp_path, text):
    (tmp_path / "questions.json").write_text(text)
    with pytest.raises(DataError, match="number of a picture"):
        Questions(load_benchmark("easy_vqa", RECIPES), [str(tmp_path)])


def test_a_generator_needs_to_be_told():
    with pytest.raises(ConfigError, match="needs `generated`"):
        reasoning_gym(None, "x")


# The packages themselves, where they are installed

def of_its_package(name: str) -> list:
    benchmark = load_benchmark(name, RECIPES)
    try:
        metadata.distribution(benchmark.package.name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"pip install --no-deps {benchmark.package.name}=={benchmark.package.version}")
    return list(Questions(benchmark, [str(folder_of(benchmark.package, name))]))


def test_easy_vqa_itself():
    questions = of_its_package("easy_vqa")
    kinds = {kind: sum(question.category == kind for question in questions) for kind in ("yes or no", "name")}
    assert kinds == {"yes or no": 7136, "name": 2537}
    assert {answer for question in questions for answer in question.truths} >= {"yes", "no", "circle", "teal"}


def test_the_examples_of_lm_eval_themselves():
    questions = of_its_package("mmlu_dev")
    assert len({question.category for question in questions}) == 57
    for question in questions:
        assert len(question.turns) in (7, 9) and question.turns[-1].text not in [turn.text for turn in question.turns[:-1]]
        assert len(question.choices) == 4 + (question.truths == ("E",))
    assert [question.truths[0] for question in of_its_package("gsm8k_examples")] == ["6", "5", "39", "8", "9", "29", "33", "8"]


def test_humaneval_itself():
    questions = of_its_package("humaneval")
    assert [question.id for question in questions[::163]] == ["HumanEval/0", "HumanEval/163"]
    with gzip.open(folder_of(load_benchmark("humaneval", RECIPES).package, "humaneval") / "HumanEval.jsonl.gz") as file:
        assert questions[0].kept["test"] == json.loads(file.readline())["test"]


@pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="pip install reasoning-gym==0.1.25")
def test_reasoning_gym_makes_the_same_questions_every_time_and_none_of_the_demos():
    questions = of_its_package("reasoning_gym")
    asked = [(question.id, question.turns[-1].text, question.truths) for question in questions]
    assert hashlib.sha256(json.dumps(asked).encode()).hexdigest() == "15b3093227056cfed4c6c229ff5dd2c71236754d21f31f2a9d2f479a627dcbd0"
    assert len({text for _, text, _ in asked}) == 400 and all(truth.lstrip("-").isdecimal() for _, _, (truth,) in asked)
    made = load_benchmark("reasoning_gym", RECIPES).generated
    assert made.seed not in {demo_data.SEED, puzzles.TEST_SEED + demo_data.SEED}
    assert made.tasks["chain_sum"]["min_terms"] > puzzles.TASKS["basic_arithmetic"]["max_terms"]
    for wrong in (Generated(1, 2, {"no_such_task": {}}), Generated(1, 2, {"gcd": {"no_such_setting": 1}}),
                  Generated(1, 2, {"gcd": {"min_value": 9, "max_value": 2}}), Generated(1, 99, {"gcd": {"min_value": 2, "max_value": 3}})):
        with pytest.raises(ConfigError, match="reasoning-gym cannot make|different questions among"):
            reasoning_gym(wrong, "x")
