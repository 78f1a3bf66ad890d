"""docs/recipes.md and docs/backbones.md say what the recipes say: their tables are made of them (UPDATE_GOLDEN=1 writes)."""

import os
import re
from pathlib import Path

import pytest
import yaml
from doc_tables import SCRIPTS, tables

import nvlm_train
from nvlm_train.config.compose import compose, recipe_names, recipes_dir
from nvlm_train.data.templates import TEMPLATES

DOCS = Path(nvlm_train.__file__).resolve().parents[1] / "docs"


def published(group: str) -> set[str]:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (recipes_dir() / group).glob("*.yaml")}
    return {name for name, text in texts.items() if yaml.safe_load(text)["model"][group].get("source")}


TABLES = tables({group: published(group) for group in ("language", "vision")})


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("file", TABLES)
def test_tables_are_made_of_the_recipes(file):
    text = text_of(file)
    assert re.findall(r"<!-- table: ([\w-]+)", text) == list(TABLES[file])
    made = re.sub(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)",
                  lambda block: f"{block[1]}{TABLES[file][block[2]]()}\n{block[3]}", text, flags=re.DOTALL)
    if os.environ.get("UPDATE_GOLDEN"):
        (DOCS / file).write_text(made, encoding="utf-8")
    assert text_of(file) == made, "UPDATE_GOLDEN=1 if that is meant"


def test_every_recipe_and_method_is_told_of():
    text = text_of("recipes.md")
    which = re.findall(r"^\| (`.*?) \|", text.split("## Which")[1].split("\n## ")[0], re.MULTILINE)
    listed = re.findall(r"`(\w+)`", "\n".join(which))
    assert sorted(listed) == sorted(set(recipe_names()) - {"demo_language", "demo_vision"})
    section = text.split("## Designs to compare")[1].split("\n## ")[0]
    methods = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    scripts = {"nvlm_d_scripts", "nvlm_d_scripts_34b"}
    assert set(methods) | scripts == {path.stem for path in (recipes_dir() / "method").glob("*.yaml")}
    assert all(compose(["recipe=nvlm_d_2b", f"method={method}"]) for method in methods)


def test_the_ablations_shown_change_the_recipes():
    section = text_of("recipes.md").split("## Designs to compare")[1].split("\n## ")[0]
    ablations = re.findall(r"^\| (.*) \| `(stages[^`]*)` \|$", section, re.MULTILINE)
    assert len(ablations) == 6
    for told, overrides in ablations:
        for recipe in ["nvlm_x_tiny"] if "NVLM-X" in told else ["nvlm_d_tiny", "nvlm_h_tiny"] if "NVLM-D" in told else [
                "nvlm_d_tiny", "nvlm_x_tiny", "nvlm_h_tiny"]:
            assert compose([f"recipe={recipe}", *overrides.split()]) != compose([f"recipe={recipe}"]), (told, recipe)


@pytest.mark.parametrize(("file", "least"), [("recipes.md", 6), ("backbones.md", 2)])
def test_the_commands_shown_compose(file, least):
    shown = re.findall(r"^nvlm (?:train|show-config) (?:--dry-run )?(recipe=[^#\n]*)", text_of(file), re.MULTILINE)
    assert len(shown) >= least
    for line in shown:
        assert compose(line.split())


def test_the_scripts_commands_are_those_that_are_tested():
    lines = re.findall(r"^nvlm train (recipe=\S+ method=nvlm_d_scripts.*?) *(?:#|$)", text_of("recipes.md"), re.MULTILINE)
    shown = [set(line.split()) for line in lines]
    assert shown == [set(words) for words in SCRIPTS.values()]


def test_backbones_are_imported_to_where_recipes_look():
    """Every import command names a folder that an entry has."""
    text = text_of("backbones.md")
    folders = set(re.findall(r"^nvlm import from=\S+ to=(weights/\S+)", text, re.MULTILINE))
    known = {yaml.safe_load((recipes_dir() / group / f"{name}.yaml").read_text(encoding="utf-8"))["model"][group]["weights"]
             for group in ("language", "vision") for name in published(group)}
    assert folders and folders <= {path.replace("${oc.env:NVLM_WEIGHTS,weights}", "weights") for path in known}


def test_templates_are_told_of_with_their_tokens():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text_of("backbones.md").split("## Templates")[1], re.MULTILINE)
    assert [name for name, _ in rows] == list(TEMPLATES)
    for name, told in rows:
        template = TEMPLATES[name]
        assert all(token.replace("|", r"\|") in told for token in (*template.markers, *template.placeholders)), name


def test_the_entry_shown_as_an_example_says_all_that_entries_say():
    (example,) = re.findall(r"```yaml\n(# @package _global_\n.*?)```", text_of("backbones.md"), re.DOTALL)
    known = yaml.safe_load((recipes_dir() / "language" / "qwen2_5_7b.yaml").read_text(encoding="utf-8"))
    mine = yaml.safe_load(example)
    assert mine["model"].keys() <= known["model"].keys() | {"tags"} and mine["data"].keys() == known["data"].keys()
    assert mine["model"]["language"].keys() == known["model"]["language"].keys()
