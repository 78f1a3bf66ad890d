"""The catalog holds what the paper lists, refuses what it does not understand, and everything written from it is up to date."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from data_prep.__main__ import main as data_prep
from data_prep.catalog.blend import TEXT_SHARE, blend_recipe, weights
from data_prep.catalog.entries import FAMILIES, STYLES, TASKS, entry, load_catalog
from data_prep.catalog.listing import markdown, size_text
from data_prep.catalog_command import search
from data_prep.convert.families import FAMILIES as CONVERTERS
from data_prep.convert.options import typed
from nvlm_train.config.compose import compose, recipes_dir
from nvlm_train.data.order import quotas
from nvlm_train.errors import DataError

DOCS = Path(__file__).resolve().parents[2] / "docs"
CATALOG = load_catalog()

PAPER = {   # Tables 4 and 6, section 5.3
    "pretrain": {"captioning": 4, "natural_vqa": 2, "chart": 1, "document": 1, "ocr": 9, "math": 1},
    "sft": {"captioning": 3, "natural_vqa": 5, "knowledge": 2, "visual_reasoning": 4, "chart": 9, "table": 3, "document": 8, "ocr": 28,
            "math": 13, "science": 5, "visual_instruction": 3},
    "text": {"general": 6, "math": 3, "code": 3},
}
TABLE_4 = """coco cc3m sbu laion_115m vqav2 visual_genome dvqa docmatix ocr_vqa coco_text textocr rects rrc_art rrc_lsvt rctw
             synthdog_en pdfa clevr_math"""
BENCHMARKS = """MMMU MathVista OCRBench AI2D ChartQA DocVQA TextVQA RealWorldQA VQAv2 MMLU GSM8K MATH HumanEval"""     # section 6.1

GOOD = """
toy:
  title: Toy
  task: {sft: math}
  style: vqa
  convert: {family: vqa, questions: q.json}
  source: https://example.org
"""


def catalog_of(folder: Path, text: str, name: str = "toy.yaml") -> dict:
    (folder / name).write_text(text, encoding="utf-8")
    return load_catalog(folder)


# What it holds

def test_every_task_group_has_as_many_datasets_as_in_the_paper():
    found = {stage: Counter(e.task[stage] for e in CATALOG.values() if stage in e.task) for stage in TASKS}
    assert found == PAPER
    assert [sum(groups.values()) for groups in PAPER.values()] == [18, 83, 12]
    assert {stage: set(groups) for stage, groups in TASKS.items()} == {stage: set(groups) for stage, groups in PAPER.items()}


def test_datasets_of_two_stages_are_one_entry():
    pretraining = {name for name, e in CATALOG.items() if "pretrain" in e.task}
    assert pretraining == set(TABLE_4.split())
    assert {name for name in pretraining if "sft" not in CATALOG[name].task} == {"cc3m", "sbu", "laion_115m", "rrc_art", "rrc_lsvt", "rctw"}
    assert len(CATALOG) == 18 + 83 + 12 - 12 and all(e.paper for e in CATALOG.values())


def test_robut_is_one_entry_of_three_parts():
    assert [name.split("/")[0] for name in entry("robut").convert["files"]] == ["robut_wtq", "robut_wikisql", "robut_sqa"]
    assert not [name for name in CATALOG if name.startswith("robut_")]


def test_benchmarks_whose_train_split_is_trained_on():
    """Section 5.2 of the paper; a dataset's own test split is what it is checked against first."""
    benchmarks = {e.benchmark: e.held_out[0] for e in CATALOG.values() if e.benchmark}
    assert benchmarks == {name: name for name in ("ChartQA", "DocVQA", "VQAv2", "TextVQA", "AI2D")}
    named = [name for e in CATALOG.values() for name in e.held_out]
    assert set(named) <= set(BENCHMARKS.split()) and len(named) > 50


def test_only_two_datasets_have_no_known_home():
    assert {name for name, e in CATALOG.items() if not e.source} == {"vqa_cd", "textbook"}
    assert all(e.note for e in CATALOG.values() if not e.source or len(e.convert) == 1), "what cannot be read as it is says why"


def test_entries_use_the_whole_vocabulary_and_agree_with_themselves():
    assert {e.convert["family"] for e in CATALOG.values()} == set(FAMILIES)
    assert {e.style for e in CATALOG.values()} == set(STYLES)
    styles = {e.name: ("open" if "text" in e.task else e.style, e.convert["style"]) for e in CATALOG.values() if "style" in e.convert}
    assert all(own == of_converter for own, of_converter in styles.values()) and len(styles) == 5
    assert all(e.style == "chat" for e in CATALOG.values() if "text" in e.task)
    copies = [e for e in CATALOG.values() if e.copy and e.convert["family"] == "parquet" and e.name != "robut"]
    assert all(e.convert["files"].split("/")[0] == e.copy.split("/")[-1] for e in copies) and len(copies) > 50


def test_options_of_converters_are_plain_and_stay_in_the_dataset_folder():
    for e in CATALOG.values():
        for option in e.convert.values():
            values = option if isinstance(option, list) else [option]
            assert values and all(isinstance(value, str) and not value.startswith("/") and ".." not in value for value in values), e.name


def test_converters_take_the_options_of_every_entry():
    """Five entries have none: their public files need work first, or their layout is not known."""
    bare = set()
    for e in CATALOG.values():
        options = {name: value for name, value in e.convert.items() if name != "family"}
        if options:
            typed(e.convert["family"], CONVERTERS[e.convert["family"]], options)
        else:
            bare.add(e.name)
    assert bare == {"wikitablequestions", "dude", "vqa_cd", "poie", "textbook"} and set(CONVERTERS) == set(FAMILIES)


# What it refuses

@pytest.mark.parametrize(("old", "new", "message"), [
    ("title: Toy", "titel: Toy", r"toy.yaml: toy: there is no field 'titel'; did you mean title\?"),
    ("  title: Toy\n", "", "toy.yaml: toy: the field title is missing"),
    ("title: Toy", "title: 7", "toy: title: a text; found 7"),
    ("sft: math", "stf: math", r"'stf' is none of pretrain, sft, text; did you mean sft\?"),
    ("sft: math", "sft: maths", r"task: in sft, 'maths' is none of captioning, .*; did you mean math\?"),
    ("sft: math", "text: science", "task: in text, 'science' is none of general, math, code"),
    ("{sft: math}", "math", "stage and task group"),
    ("style: vqa", "style: vqaa", r"style: 'vqaa' is none of .*; did you mean vqa\?"),
    ("family: vqa", "family: parket", r"convert: 'parket' is none of .*; did you mean parquet\?"),
    ("family: vqa, ", "", "convert: needs a family"),
    ("https://example.org", "example.org", "source: an address that begins with https://"),
    ("https://example.org", "null", "toy: without a source, a note has to say why"),
    ("title: Toy", "title: Toy\n  size: -3", "size: a positive number"),
    ("title: Toy", "title: Toy\n  held_out: ChartQA", "held_out: a list"),
    ("title: Toy", "title: Toy\n  paper: maybe", "paper: true or false"),
    ("title: Toy", "title: Toy\n  title: Toys", "title stands twice"),
    ("\ntoy:", "\nToy-1:", "Toy-1: a name is at most 40 small letters"),
    (GOOD, "toy: 5", "an entry is a list of fields, found '5'"),
    (GOOD, "- toy", "is no catalog file"),
    (GOOD, "toy: {", "cannot be read"),
])
def test_a_wrong_entry_is_refused_with_what_is_wrong(tmp_path, old, new, message):
    assert catalog_of(tmp_path, GOOD)["toy"].stages == ("sft",)
    assert old in GOOD
    with pytest.raises(DataError, match=message):
        catalog_of(tmp_path, GOOD.replace(old, new))


def test_a_name_in_two_files_is_refused(tmp_path):
    catalog_of(tmp_path, GOOD)
    with pytest.raises(DataError, match=r"zoo.yaml: toy is in another file"):
        catalog_of(tmp_path, GOOD, "zoo.yaml")


def test_a_folder_without_a_catalog_is_refused(tmp_path):
    with pytest.raises(DataError, match="no catalog in"):
        load_catalog(tmp_path)


def test_a_mistyped_name_gets_the_nearest():
    assert entry("chartqa").convert["answer"] == "label"
    with pytest.raises(DataError, match=r"no dataset 'chartaq'; did you mean chartqa\? .*all 101"):
        entry("chartaq")


# The verb

def test_count_prints_three_lines(capsys):
    assert data_prep(["catalog", "--count"]) == 0
    assert capsys.readouterr().out == "pretrain 18\nsft 83\ntext 12\n"


def test_count_of_a_task_group(capsys):
    assert data_prep(["catalog", "--count", "--task", "math", "--stage", "sft"]) == 0
    assert capsys.readouterr().out == "sft 13\n"


def test_search_takes_stage_task_and_words():
    entries = CATALOG.values()
    assert len(search(entries, task="math")) == 13 + 3, "CLEVR-Math is in pretraining and finetuning, and is one entry"
    assert [e.name for e in search(entries, ["GEO170K", "align"])] == ["geo170k_align"]
    assert [e.name for e in search(entries, ["handwritten"])] == ["orand", "hme100k"]
    assert search(entries, task="code", stage="sft") == []
    assert {e.name for e in search(entries, ["science"], stage="sft")} >= {"ai2d", "tqa"}, "a task group's name is searched too"


def test_list_names_every_dataset_whole(capsys):
    assert data_prep(["catalog", "--stage", "text"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name, e in CATALOG.items() if "text" in e.task)
    assert "12 of 101 datasets" in shown


def test_show(capsys):
    assert data_prep(["catalog", "show", "chartqa"]) == 0
    shown = capsys.readouterr().out
    assert "check against: ChartQA, MathVista, OCRBench" in shown and "    question: query\n" in shown
    assert data_prep(["catalog", "show", "chartqa", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["convert"]["family"] == "qa_records"
    assert data_prep(["catalog", "show", "chartaq"]) == 2
    assert "did you mean chartqa?" in capsys.readouterr().err
    assert data_prep(["catalog", "show"]) == 2


def test_json_holds_every_field(capsys):
    assert data_prep(["catalog", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) == 101 and set(entries[0]) == set(CATALOG["coco"].__dataclass_fields__)


# The blend

def test_blend_recipe_is_what_the_catalog_gives():
    written = (recipes_dir() / "blend" / "nvlm_paper.yaml").read_text(encoding="utf-8")
    assert written == blend_recipe(CATALOG), "write it anew: python -m data_prep catalog --blend > recipes/blend/nvlm_paper.yaml"


@pytest.mark.parametrize("recipe", ["nvlm_d_72b", "nvlm_x_34b", "nvlm_h_2b"])
def test_blend_composes_with_every_dataset_of_its_stage(recipe, monkeypatch):
    monkeypatch.setenv("NVLM_DATA", "/data")
    pretrain, sft = (run.data.blend for run in compose([f"recipe={recipe}", "blend=nvlm_paper"]))
    assert set(pretrain) == {name for name, e in CATALOG.items() if "pretrain" in e.task} and len(pretrain) == 18
    assert set(sft) == {name for name, e in CATALOG.items() if {"sft", "text"} & set(e.task)} and len(sft) == 83 + 12
    assert all(source.path == f"/data/shards/{name}" for blend in (pretrain, sft) for name, source in blend.items())
    for blend in (pretrain, sft):
        assert math.isclose(sum(source.weight for source in blend.values()), 1, abs_tol=1e-3)
        assert min(quotas([source.weight for source in blend.values()])) >= 1
    text = sum(source.weight for name, source in sft.items() if "text" in CATALOG[name].task)
    assert math.isclose(text, TEXT_SHARE, abs_tol=1e-3)


def test_what_is_missing_can_be_left_out():
    (run,) = compose(["recipe=nvlm_d_2b", "blend=nvlm_paper", "stage=sft", "~data.blend.vqa_cd", "~data.blend.textbook"])
    assert len(run.data.blend) == 93


def test_weights_go_with_the_square_root_of_the_size():
    pretrain, sft = weights(CATALOG, "pretrain"), weights(CATALOG, "sft")
    assert math.isclose(pretrain["laion_115m"] / pretrain["coco"], math.sqrt(115e6 / 118e3))
    assert math.isclose(sft["pdfa"] / sft["chartqa"], math.sqrt(200e3 / 18e3)), "18 M pages count as 200,000"
    assert sft["dude"] == sft["vqa_cd"], "sizes that are not known count alike"
    assert min(sft.values()) < sft["dude"] < max(sft.values())


def test_an_added_dataset_is_neither_counted_nor_blended(tmp_path):
    catalog = CATALOG | catalog_of(tmp_path, GOOD.replace("title: Toy", "title: Toy\n  paper: false"))
    assert "toy" in catalog and "toy" not in weights(catalog, "sft")
    assert blend_recipe(catalog) == blend_recipe(CATALOG) and markdown(catalog) == markdown(CATALOG)


# The pages

def test_page_of_datasets_is_what_the_catalog_gives():
    written = (DOCS / "datasets.md").read_text(encoding="utf-8")
    assert written == markdown(CATALOG), "write it anew: python -m data_prep catalog --markdown > docs/datasets.md"
    rows = re.findall(r"^\| `(\w+)` \|", written, re.MULTILINE)
    assert len(rows) == 18 + 83 + 12 and set(rows) == set(CATALOG)
    assert all(line.count(" | ") == 7 for line in written.splitlines() if line.startswith("| `"))


@pytest.mark.parametrize(("size", "text"), [(None, ""), (300, "300"), (2300, "2.3 K"), (118000, "118 K"), (115000000, "115 M")])
def test_sizes_for_people(size, text):
    assert size_text(size) == text


def test_how_to_add_a_dataset_shows_what_works(tmp_path, monkeypatch):
    monkeypatch.setenv("NVLM_DATA", "/data")
    page = (DOCS / "adding_a_dataset.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (name,) = yaml.safe_load(example)
    assert catalog_of(tmp_path, example)[name].paper is False and name not in CATALOG
    (command,) = re.findall(r"^nvlm train (.*)$", page, re.MULTILINE)
    (run,) = compose(command.split())
    assert run.data.blend[name].path == f"$NVLM_DATA/shards/{name}" and len(run.data.blend) == 96
    described = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert set(described) == set(CATALOG["coco"].__dataclass_fields__) - {"name"}
    assert all(style in page for style in STYLES)
