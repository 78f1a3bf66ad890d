"""docs/configuration.md says what the schema says."""

import dataclasses
import re
from pathlib import Path

import yaml

import nvlm_train
from nvlm_train.config.compose import compose
from nvlm_train.config.request import Eval
from nvlm_train.config.schema import Run
from nvlm_train.config.typed import is_group, key_paths, kind_at

DOCS = Path(nvlm_train.__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "configuration.md").read_text(encoding="utf-8")


def default_of(key: str):
    value = Run("", "")
    for part in key.split("."):
        value = getattr(value, part)
    return list(value) if isinstance(value, tuple) else value


def test_every_setting_is_documented_with_its_default():
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| .*\|$", TEXT.split("## Settings")[1].split("## Where")[0], re.MULTILINE)
    leaves = [key for key in key_paths(Run) if "<name>" not in key and not is_group(kind_at(Run, tuple(key.split("."))))]
    assert {key for key, _ in rows} == set(leaves) - {"recipe", "stage"}
    documented = {key: yaml.safe_load(text) for key, text in rows}
    # YAML reads a bare off as false; the table is for people.
    documented["run.wandb"] = "off" if documented["run.wandb"] is False else documented["run.wandb"]
    assert documented == {key: default_of(key) for key in documented}
    assert len(rows) > 70


def test_every_request_key_is_documented():
    mentioned = set(re.findall(r"`([\w.]+)`", TEXT))
    assert {f"eval.{field.name}" for field in dataclasses.fields(Eval)} <= mentioned


def test_the_overrides_shown_work():
    shown = re.findall(r"^nvlm \S+ (?:--dry-run )?(recipe=[^#\n]*)", TEXT, re.MULTILINE)
    assert len(shown) == 4
    assert all(compose(line.split()) for line in shown)
    table = re.findall(r"^\|.*\|$", TEXT.split("## Writing overrides")[1].split("## Root keys")[0], re.MULTILINE)
    spans = [span.strip("'") for row in table for span in re.findall(r"`([^`]*[=~][^`]*)`", row)]
    # Several overrides in one span stand apart by a space; text may hold one too.
    assert all(compose(["recipe=nvlm_d_tiny", "stage=sft", *re.split(r" (?=[\w.]+=)", span)]) for span in spans)
    assert len(spans) == 8
