"""The study of text ability: its text, its tables, and once everything in small."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from benchmarks import text_ability
from benchmarks import text_ability_data as texts
from benchmarks.text_ability_tables import tables
from tests.engine.launching import ROOT


def measured(folder, name, share, seed, **tests):
    (folder / name).mkdir(parents=True)
    (folder / name / "text.json").write_text(json.dumps({"share": share, "seed": seed, "tests": tests}))


def test_tables_say_mean_and_difference_over_seeds(tmp_path):
    assert tables(tmp_path).startswith("nothing is measured")
    measured(tmp_path, "backbone", None, None, sums={"loss": [0.1, 0.3], "right": [1.0, 1.0]}, told={"loss": [2.0, 2.0]})
    for seed, (loss, right) in enumerate(((0.5, 0.0), (0.6, 0.5), (0.7, 0.5)), 1):
        measured(tmp_path, f"text-000-seed-{seed}", 0.0, seed, sums={"loss": [loss, loss], "right": [right, right]}, told={"loss": [2.5, 2.5]})
    nats, right = tables(tmp_path).split("\n\n")
    # Student's t over 0.3, 0.4, 0.5: 0.4 +- 4.3027 * 0.1 / sqrt(3)
    assert "| sums | 2 | 0.200 | 0.600 (+0.152 to +0.648) |" in nats and "| told | 2 | 2.000 | 2.500 (+0.500 to +0.500) |" in nats
    assert "| sums | 2 | 100.0 | 33.3 (−138.4 to +5.0) |" in right and "told" not in right


def test_with_one_seed_the_interval_is_over_the_questions(tmp_path):
    measured(tmp_path, "backbone", None, None, sums={"loss": [1.0, 1.0, 1.0]})
    measured(tmp_path, "text-050-seed-1", 0.5, 1, sums={"loss": [1.1, 1.3, 1.2]})
    # 0.2 +- 1.96 * 0.1 / sqrt(3)
    assert "| sums | 3 | 1.000 | 1.200 (+0.087 to +0.313) |" in tables(tmp_path)


def test_what_is_asked_is_never_blended_in():
    """Nor is it asked twice. The text is the same every time."""
    pytest.importorskip("reasoning_gym")
    blended = list(texts.training(200))
    asked = [choice.samples[0] for choice in texts.puzzle_choices(texts.BLENDED, 40)] + texts.documentation(test=True) + texts.prose()
    assert not {sample.turns for sample in blended} & {sample.turns for sample in asked}
    assert len({sample.turns[1].text for sample in asked if sample.source == "prose"}) == len(texts.prose()) > 30
    assert {sample.source for sample in blended} == {"puzzles", "documentation"}
    assert [sample.key for sample in texts.training(200)] == [sample.key for sample in blended]
    unseen = {choice.samples[0].meta["task"] for choice in texts.puzzle_choices(texts.UNSEEN, 30)}
    assert unseen == set(texts.UNSEEN) and not unseen & set(texts.BLENDED)
    for choice in texts.puzzle_choices(texts.BLENDED, 40):
        answers = [sample.turns[1].text for sample in choice.samples]
        assert len(set(answers)) == texts.OPTIONS and len({sample.turns[0] for sample in choice.samples}) == 1


def test_the_docs_commands_are_read(monkeypatch):
    """And the tables there have the columns that `--show` prints."""
    text = (ROOT / "docs" / "text_ability.md").read_text(encoding="utf-8")
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^python -m benchmarks\.text_ability (.*)$", text, re.MULTILINE)]
    assert len(commands) >= 2 and {text_ability._options(words).scale for words in commands} == set(text_ability.SCALES)
    heads = re.findall(r"^\| (nats a token|% right) \| samples \| backbone \| (.*) \|$", text, re.MULTILINE)
    assert len(heads) == 4 and all(re.fullmatch(r"\d+% text( \| \d+% text)*", columns) for _, columns in heads)


@pytest.mark.full
@pytest.mark.slow
def test_all_of_it_in_small(tmp_path):
    """Trains, measures, prints the tables; started again it trains nothing."""
    pytest.importorskip("easy_vqa")
    command = [sys.executable, "-m", "benchmarks.text_ability", str(tmp_path), "--quick", "--shares", "0,50", "--seeds", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    for trained in (True, False):
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=580)
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("sft: starts from the weights" in done.stdout) is trained
        assert "| nats a token | samples | backbone | 0% text | 50% text |" in done.stdout
    assert not list(tmp_path.glob("demo/text-*/checkpoints"))
