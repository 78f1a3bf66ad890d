"""The demo's orchestration: what it starts, shows, keeps, and when it says no. The training itself is not run here."""

import io
import json
import sys

import pytest
from rich.console import Console

from data_prep import demo
from nvlm_train.comparison import processes
from nvlm_train.comparison.processes import ProcessFailed

SCORES = {"easy_vqa": {"with_images": 0.95, "blanked": 0.62, "majority": 0.37},
          "rendered_text": {"with_images": 0.9, "blanked": 0.02, "majority": 0.03},
          "text_only": {"before": 0.9, "blended": 0.88, "unblended": 0.1}}


def run(monkeypatch, tmp_path, capsys, scores):
    monkeypatch.setattr(demo, "run_stages", lambda folder, console: scores)
    folder = tmp_path / "demo"
    folder.mkdir()
    code = demo.main([str(folder)])
    return code, folder, capsys.readouterr().out


def test_a_good_run_leaves_summary_report_and_tables(monkeypatch, tmp_path, capsys):
    code, folder, out = run(monkeypatch, tmp_path, capsys, SCORES)
    summary = json.loads((folder / "summary.json").read_text())
    assert code == 0
    assert summary.pop("seconds") >= 0 and summary == SCORES
    assert (folder / "report.html").exists()
    for figure in ("95.0%", "62.0%", "37.0%", "2.0%", "88.0%", "10.0%"):
        assert figure in out


def test_a_model_that_does_not_look_fails_the_demo(monkeypatch, tmp_path, capsys):
    blind = {**SCORES, "easy_vqa": {"with_images": 0.70, "blanked": 0.62, "majority": 0.37}}
    code, folder, out = run(monkeypatch, tmp_path, capsys, blind)
    assert code == 1 and (folder / "summary.json").exists()
    assert "did not learn to see" in out


def test_stages_come_in_order_and_share_the_pretraining(monkeypatch, tmp_path):
    started = []

    def launch(module, log, console):
        started.append(module)
        (tmp_path / "demo").mkdir(exist_ok=True)
        (tmp_path / "demo" / "scores.json").write_text(json.dumps(SCORES))

    monkeypatch.setattr(demo, "launch", launch)
    monkeypatch.setattr(demo.tiny, "ensure", lambda name, progress: started.append([name]))
    assert demo.run_stages(tmp_path / "demo", Console(file=io.StringIO())) == SCORES
    data, both, unblended, scores = started
    assert data == ["demo"]
    assert both[:3] == ["nvlm_train", "train", "recipe=nvlm_d_demo"] and not any(word.startswith("stage=") for word in both)
    assert {"stage=sft", "~data.blend.text", f"init={tmp_path / 'demo' / 'checkpoints' / 'pretrain'}"} <= set(unblended)
    assert scores[0] == "data_prep.demo_scores"


@pytest.fixture
def plain_launch(monkeypatch):
    """Start the module itself instead of two of it under torchrun."""
    popen = processes.subprocess.Popen

    def plain(command, **more):
        return popen([sys.executable, *command[command.index("2") + 1:]], **more)

    monkeypatch.setattr(processes.subprocess, "Popen", plain)


def test_only_telling_lines_are_shown_and_all_are_kept(plain_launch, tmp_path):
    screen = io.StringIO()
    demo.launch(["this"], tmp_path / "log", Console(file=screen))
    assert screen.getvalue() == ""
    assert "Namespaces are one honking great idea" in (tmp_path / "log").read_text()


def test_a_failing_stage_is_told_with_the_end_of_its_output(plain_launch, tmp_path):
    with pytest.raises(ProcessFailed, match="no_such_module ended with code 1(?s:.)*No module named no_such_module"):
        demo.launch(["no_such_module"], tmp_path / "log", Console(file=io.StringIO()))


def test_failure_ends_with_code_one(monkeypatch, tmp_path, capsys):
    def fail(folder, console):
        raise ProcessFailed("it broke")

    monkeypatch.setattr(demo, "run_stages", fail)
    assert demo.main([str(tmp_path)]) == 1
    assert "it broke" in capsys.readouterr().out
