"""`nvlm eval` and `nvlm generate` around an engine whose answers are known; loading a checkpoint is tested with the engine."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_tasks import ENCODER, MODEL, always, question

from data_prep.shards import write_shards
from nvlm_train.config.schema import Data, Run, Source
from nvlm_train.errors import ConfigError
from nvlm_train.evaluation import commands
from nvlm_train.training.logs import EVAL, read_rows

OPTIONS = {"checkpoint": "runs/x", "data": None, "limit": 0, "max_new_tokens": 4, "json": False, "image": [], "prompt": None}
RUN = Run(recipe="test", stage="sft", model=MODEL, data=Data())


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """A run directory, and a model in place of the one that `open_model` would load from it."""
    (tmp_path / "run" / "checkpoints" / "sft" / "step-00000007").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("")
    write_shards(tmp_path / "quiz", [question(n, "no" if n < 6 else "yes", task="quiz") for n in range(8)])
    run = replace(RUN, data=replace(RUN.data, validation={"quiz": Source(str(tmp_path / "quiz"))}))
    model = commands.Model(run, always("no"), ENCODER, tmp_path / "run" / "checkpoints" / "sft" / "step-00000007",
                           SimpleNamespace(stage="sft", step=7))
    monkeypatch.setattr(commands, "open_model", lambda runs, checkpoint: model)
    return model


def test_eval_prints_and_keeps_the_scores(opened, capsys):
    commands.eval_command([opened.run], OPTIONS)
    out = capsys.readouterr().out
    assert "quiz" in out and "75.0%" in out
    [row] = read_rows(opened.run_dir / EVAL)
    assert row == {"stage": "sft scores", "step": 7, "kind": "score", "task": "quiz",
                   "scores": {"accuracy": 0.75, "majority": 0.75, "questions": 8}}
    assert len(read_rows(opened.run_dir / "predictions.jsonl")) == 8
    assert (opened.run_dir / "report.html").exists()


def test_eval_as_json_with_a_limit_on_a_named_folder(opened, capsys, tmp_path):
    commands.eval_command([opened.run], {**OPTIONS, "json": True, "limit": 4, "data": str(tmp_path / "quiz")})
    scores = json.loads(capsys.readouterr().out)["tasks"]["quiz"]
    assert (scores["accuracy"], scores["count"], scores["majority"]) == (0.75, 4, "no")


def test_eval_of_a_checkpoint_outside_a_run_only_prints(opened, capsys, tmp_path):
    (opened.run_dir / "config.yaml").unlink()
    commands.eval_command([opened.run], OPTIONS)
    assert "75.0%" in capsys.readouterr().out
    assert not (tmp_path / "run" / EVAL).exists()


def test_eval_without_data_says_what_to_do(opened, monkeypatch):
    nothing = replace(opened, run=RUN)
    monkeypatch.setattr(commands, "open_model", lambda runs, checkpoint: nothing)
    with pytest.raises(ConfigError, match="eval.data=FOLDER"):
        commands.eval_command([RUN], OPTIONS)


def test_run_dir_is_found_from_the_checkpoint(opened, tmp_path):
    assert opened.run_dir == Path(tmp_path / "run").resolve()
