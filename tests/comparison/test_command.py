"""The comparison as a whole, with a stand-in for the processes that train and ask."""

import io
import json

import pytest
from comparison_fakes import SHORT, TASK, Starter, comparison, jobs, leave_checkpoint, leave_run
from rich.console import Console

from nvlm_train.comparison import running
from nvlm_train.comparison.command import compare_command
from nvlm_train.comparison.designs import OWN_WORK
from nvlm_train.comparison.intervals import wilson
from nvlm_train.errors import ConfigError

TRAIN, ASK = "nvlm_train", "nvlm_train.comparison.asking"
D, X = "nvlm_d_tiny", "nvlm_x_tiny"


@pytest.fixture
def compare(monkeypatch, tmp_path):
    """compare(asked, failing=design) -> (exit code, what was started, what was shown, compare.json or None)."""
    def run(asked=None, failing="", shared=SHORT, **more):
        asked = asked or comparison(tmp_path)
        starter, screen = Starter(jobs(asked), failing), io.StringIO()
        monkeypatch.setattr(running, "run_module", starter)
        code = compare_command(asked, shared, console=Console(file=screen, width=400), **more)
        path = tmp_path / "compare.json"
        return code, starter.started, screen.getvalue(), json.loads(path.read_text()) if path.exists() else None
    return run


def test_each_design_and_seed_is_trained_then_asked(compare, tmp_path):
    code, started, shown, found = compare(comparison(tmp_path, seeds=(1, 2, 3)))
    assert code == 0
    assert started == [(verb, design, seed, 1) for seed in (1, 2, 3) for design in (D, X) for verb in (TRAIN, ASK)]
    assert (found["seeds"], found["processes"], found["failed"]) == ([1, 2, 3], 1, [])
    design = found["designs"][D]
    assert design["architecture"] == "nvlm_d" and design["words"] == [OWN_WORK, *SHORT, "recipe=nvlm_d_tiny"]
    assert design["tasks"]["shapes"] == {"accuracy": 0.75, "low": 0.75, "high": 0.75, "interval": "student_t", "blanked": 0.5,
                                         "majority": 0.25, "questions": 4, "by_seed": [0.75] * 3, "less_first": None}
    assert found["designs"][X]["tasks"]["shapes"]["less_first"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert "shapes, less nvlm_d_tiny, points" in shown and "+0.0 (+0.0 to +0.0)" in shown
    assert design["stages"]["sft"] == {
        "training_loss": 1.0, "validation_loss": 1.5, "samples_per_s": 4.0, "tokens_per_sample": 15.0,
        "memory_tokens_per_sample": 4.0, "gflop_per_sample": pytest.approx(1.5), "refused": 0}
    assert design["peak_memory_gib"] == 1.5 and design["runs"]["2"] == f"{D}/seed-2"
    assert design["parameters"]["cross_attention"] == 0 < found["designs"][X]["parameters"]["cross_attention"]
    assert {"stage": "all", "key": "model.architecture", "values": {D: "nvlm_d", X: "nvlm_x"}} in found["differing"]
    assert "75.0% (75.0–75.0)" in shown and "samples a second" in shown


def test_one_seed_gets_the_interval_of_its_questions(compare):
    _, _, _, found = compare()
    marks, span = found["designs"][X]["tasks"]["shapes"], wilson(0.75, 4)
    assert (marks["interval"], marks["low"], marks["high"]) == ("wilson", pytest.approx(span.low), pytest.approx(span.high))
    assert found["seeds"] == [1234]


def test_a_finished_comparison_starts_nothing(compare):
    first = compare()
    code, started, shown, found = compare()
    assert (code, started) == (0, []) and "is trained already" in shown
    assert {**found, "written": 0} == {**first[3], "written": 0}


def test_a_half_finished_comparison_goes_on(compare, tmp_path):
    """One design trained and not asked, the other broken off in the middle."""
    asked = comparison(tmp_path)
    done, half = jobs(asked)
    leave_run(done)
    leave_run(half, steps=2)
    code, started, _, found = compare(asked)
    assert code == 0 and started == [(ASK, D, 1234, 1), (TRAIN, X, 1234, 1), (ASK, X, 1234, 1)]
    assert set(found["designs"][D]["tasks"]) == {"shapes"}


def test_other_questions_are_asked_again_and_nothing_is_trained(compare, tmp_path):
    compare()
    _, started, _, _ = compare(comparison(tmp_path, tasks={"shapes": "builtin:tiny/validation"}))
    assert started == [(ASK, D, 1234, 1), (ASK, X, 1234, 1)]


def test_a_failed_design_is_named_and_the_rest_compared(compare, tmp_path):
    code, started, shown, found = compare(failing=D)
    assert code == 1 and started == [(TRAIN, D, 1234, 1), (TRAIN, X, 1234, 1), (ASK, X, 1234, 1)]
    assert found["failed"] == [{"design": D, "seed": 1234, "reason": "it ended with code 3"}]
    assert found["designs"][D]["tasks"] == {} and found["designs"][X]["tasks"]["shapes"]["accuracy"] == TASK["accuracy"]
    assert "nvlm_d_tiny, seed 1234 failed and is left out" in shown
    page = (tmp_path / "compare.html").read_text()
    assert "Failed" in page and "it ended with code 3" in page


def test_a_training_that_leaves_no_last_checkpoint_has_failed(compare, monkeypatch, tmp_path):
    asked = comparison(tmp_path)
    monkeypatch.setattr(Starter, "__call__", lambda self, words, processes, log, console: leave_checkpoint(
        self.jobs[str(tmp_path / D / "seed-1234")].folder / "checkpoints" / "sft" / "step-00000001", "sft", 1, 2)
        if not (tmp_path / D).exists() else None)
    code, _, _, found = compare(asked)
    assert code == 1 and len(found["failed"]) == 2
    assert found["failed"][0]["reason"].startswith("training ended without a checkpoint of step 4")


def test_a_folder_with_a_run_of_other_settings_is_refused(compare):
    compare()
    with pytest.raises(ConfigError, match=r"nvlm_d_tiny.seed-1234 holds a run of other settings \(pretrain: train.lr is 0.002 there "
                                          r"and 0.5 here\): choose another run.dir"):
        compare(shared=[*SHORT, "train.lr=0.5"])
    assert compare(shared=[*SHORT, "data.workers=1"])[1] == []       # changes nothing that was learned


def test_dry_run_tells_the_trainings_and_writes_nothing(compare, tmp_path):
    code, started, shown, found = compare(comparison(tmp_path, seeds=(1, 2)), dry_run=True)
    assert (code, started, found) == (0, [], None) and list(tmp_path.iterdir()) == []
    assert shown.startswith("4 trainings, 1 process each")
    assert f"nvlm train {OWN_WORK} {' '.join(SHORT)} recipe=nvlm_x_tiny train.seed=2 run.dir={tmp_path}/nvlm_x_tiny/seed-2" in shown
    assert "model.architecture: nvlm_d_tiny nvlm_d, nvlm_x_tiny nvlm_x" in shown


def test_questions_that_are_not_there_are_refused_before_training(compare, tmp_path):
    with pytest.raises(ConfigError, match="eval.tasks.ocr=shards/absent: there is no such folder"):
        compare(comparison(tmp_path, tasks={"ocr": "shards/absent", "shapes": "builtin:tiny/validation"}))


def test_under_torchrun_it_is_refused(compare, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="start it without torchrun"):
        compare()
