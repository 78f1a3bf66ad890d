"""The demo's comparison: what it asks for, and when it says no. Nothing is trained here."""

import json

import pytest

from data_prep import demo_all
from nvlm_train.comparison.designs import designs_of, processes_of
from nvlm_train.comparison.fairness import differences, refuse_unfair
from nvlm_train.config.request import take_comparison
from nvlm_train.errors import DataError


def results(gain: float) -> dict:
    shapes = {"accuracy": 0.6 + gain, "blanked": 0.6}
    return {"designs": {name: {"tasks": {"easy_vqa": shapes}} for name in demo_all.RECIPES}}


@pytest.fixture
def compared(monkeypatch, tmp_path):
    """(run main with these results and this exit code of the comparison; the words that it was asked with)."""
    asked = []

    def run(found: dict, code: int = 0) -> int:
        def compare(words):
            asked.extend(words)
            (tmp_path / "compare.json").write_text(json.dumps(found))
            return code

        monkeypatch.setattr(demo_all.cli, "main", compare)
        monkeypatch.setattr(demo_all.tiny, "ensure", lambda name, progress: progress("shapes"))
        return demo_all.main([str(tmp_path)])

    return run, asked


def test_the_demo_recipes_make_a_fair_comparison(tmp_path):
    asked, shared = take_comparison(demo_all.words(tmp_path))
    designs = designs_of(asked, shared)
    refuse_unfair(designs)
    assert [design.runs[0].model.architecture for design in designs] == ["nvlm_d", "nvlm_x", "nvlm_h"]
    assert processes_of(designs, asked.processes) == 2
    assert asked.tasks == {name: f"builtin:demo/{name}_test" for name in ("easy_vqa", "rendered_text", "text")}
    assert "model.architecture" in {found.key for found in differences(designs)}
    assert all(run.model.vision.weights.endswith("demo_vision.safetensors") for design in designs for run in design.runs)


def test_designs_that_see_make_a_good_comparison(compared, capsys):
    run, asked = compared
    assert run(results(0.2)) == 0
    assert asked[:2] == ["compare", "designs=nvlm_d_demo,nvlm_x_demo,nvlm_h_demo"]
    assert "wrote shapes" in capsys.readouterr().out


def test_a_design_that_does_not_look_is_named(compared, capsys):
    found = results(0.2)
    found["designs"]["nvlm_x_demo"]["tasks"] = {"easy_vqa": {"accuracy": 0.65, "blanked": 0.6}}
    assert compared[0](found) == 1
    told = capsys.readouterr().out
    assert "nvlm_x_demo: pictures added 5.0%" in told and "nvlm_d_demo:" not in told


def test_a_failed_comparison_and_missing_packages_fail(compared, monkeypatch, tmp_path, capsys):
    assert compared[0](results(0.2), code=1) == 1

    def missing(name, progress):
        raise DataError("easy_vqa is not installed")

    monkeypatch.setattr(demo_all.tiny, "ensure", missing)
    assert demo_all.main([str(tmp_path)]) == 1
    assert "easy_vqa is not installed" in capsys.readouterr().err
