"""Real runs with benchmarks in them: the demo's small language model, which can do sums, on the built-in data."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from nvlm_train import cli
from nvlm_train.config.compose import compose
from nvlm_train.evaluation import checkpoints
from nvlm_train.evaluation.guard import TextRegression
from nvlm_train.parallel import groups
from nvlm_train.training.logs import read_rows
from nvlm_train.training.stages import train_all
from nvlm_train.training.status import read_next, read_status
from tests.engine.launching import ROOT, free_port

pytestmark = pytest.mark.slow

ASSETS = ROOT / "data_prep" / "assets"
MODEL = ("recipe=nvlm_d_demo", "stage=sft", f"model.vision.weights={ASSETS / 'demo_vision.safetensors'}",
         f"model.language.weights={ASSETS / 'demo_language.safetensors'}", "layout.pipeline=1", "run.device=cpu", "data.workers=0")
# A rate that no language model survives, and nothing of text to hold it back.
PICTURES = ("data.blend.shapes.path=builtin:tiny/sft", "~data.blend.reading", "~data.blend.text", "train.global_batch=4", "train.lr=0.02",
            "train.warmup_steps=0", "train.steps=6", "run.save_every=2", "run.examples=0")
ASKED = ("evaluate.benchmarks=[demo_sums]", "evaluate.data.demo_sums=builtin:tiny/text", "evaluate.limit=20")


@pytest.fixture(scope="module", autouse=True)
def job():
    yield
    groups.stop()


def train(run_dir, *settings):
    train_all(compose([*MODEL, *PICTURES, f"run.dir={run_dir}", *settings]))


def losses(run_dir):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_rows(run_dir / "metrics.jsonl")]


def samples(run_dir):
    return [row["ids"] for row in read_rows(run_dir / "samples.jsonl")]


def scores(run_dir):
    return [(row["stage"], row["step"], row["scores"]["score"]) for row in read_rows(run_dir / "eval.jsonl")]


def saved(run_dir, step):
    """Every file of a checkpoint that holds numbers."""
    folder = run_dir / "checkpoints" / "sft" / f"step-{step:08d}"
    return {name: record["sha256"] for name, record in json.loads((folder / "manifest.json").read_text())["files"].items()
            if name.endswith(".distcp")}


def test_asking_leaves_training_as_it_was_to_the_last_bit(tmp_path):
    """Losses, samples and the saved state, optimizer included; at a rate that the model survives, so that losses differ step by step."""
    train(tmp_path / "plain", "train.lr=0.0015", "train.steps=4")
    train(tmp_path / "asked", "train.lr=0.0015", "train.steps=4", *ASKED, "evaluate.every=1")
    assert losses(tmp_path / "asked") == losses(tmp_path / "plain")
    assert len({loss for _, loss, _ in losses(tmp_path / "plain")}) == 4
    assert samples(tmp_path / "asked") == samples(tmp_path / "plain")
    assert saved(tmp_path / "asked", 4) == saved(tmp_path / "plain", 4) != {}
    assert [step for _, step, _ in scores(tmp_path / "asked")] == list(range(5))


def test_a_run_that_loses_its_sums_is_stopped_saved_and_not_requeued(tmp_path, caplog, monkeypatch):
    run = tmp_path / "run"
    with pytest.raises(TextRegression, match="stopped by the text guard after step 2 of sft, with everything saved: demo_sums fell from"):
        train(run, *ASKED, "guard.stop=true")
    (_, _, before), (_, _, after) = scores(run)
    assert before > 0.8 and after < 0.5, "the backbone can do sums, and the regression is real"
    assert (run / "checkpoints" / "sft" / "step-00000002" / "manifest.json").is_file()
    status = read_status(run)
    assert (status.state, status.exit_code, status.step) == ("regressed", 77, 2) and "demo_sums fell" in status.alarm
    assert read_next(run) == "stop"
    assert "demo_sums fell from" in (run / "report.html").read_text(encoding="utf-8")
    assert caplog.text.count("TEXT GUARD") == 1

    # A person has looked, and goes on: the backbone is not asked again, though its weights are gone.
    train(run, *ASKED, "guard.stop=false")
    rows = read_rows(run / "eval.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    assert [row["guard"]["backbone"] for row in rows[1:]] == [before] * 3
    assert read_next(run) == "done" and len(losses(run)) == 6


def test_checkpoints_are_asked_afterwards_by_another_job(tmp_path, monkeypatch, capsys):
    """Scores of the same checkpoints are those that a training gives itself; done ones are left alone."""
    run = tmp_path / "run"
    train(run, *ASKED, "evaluate.every=2", "run.keep_last=9", "run.tensorboard=true")
    own = scores(run)
    for step in (2, 6):
        (run / "benchmarks" / f"sft-step-{step:08d}" / "demo_sums.json").unlink()
    capsys.readouterr()
    assert cli.main(["eval-checkpoints", str(run), "run.device=cpu"]) == 0
    told = capsys.readouterr().out
    assert "sft 2  demo_sums" in told and "sft 6  demo_sums" in told and "sft 4" not in told
    again = [row for row in read_rows(run / "eval.jsonl") if row["stage"] == "sft scores"]
    assert [("sft", row["step"], row["scores"]["score"]) for row in again] == [own[1], own[3]]
    assert all(row["guard"]["backbone"] == own[0][2] for row in again)
    assert not list((run / "benchmarks").rglob("lock"))
    assert (run / "tensorboard" / "sft_scores").is_dir() or find_spec("tensorboard") is None
    assert cli.main(["eval-checkpoints", str(run), "run.device=cpu", "--follow"]) == 0
    assert "demo_sums" not in capsys.readouterr().out, "nothing is left, and the run has ended"


@pytest.mark.full
def test_a_checkpoint_that_is_deleted_meanwhile_is_passed_over(tmp_path, monkeypatch, caplog):
    run = tmp_path / "run"
    train(run, *ASKED, "evaluate.at_checkpoints=false", "guard.benchmarks=[]", "run.keep_last=9")
    fill = checkpoints.Empty.fill

    def deleted_first(model, step):
        if step.name == "step-00000004":
            step.rename(step.with_name(".removing-step-00000004"))
        fill(model, step)

    monkeypatch.setattr(checkpoints.Empty, "fill", deleted_first)
    assert cli.main(["eval-checkpoints", str(run), "run.device=cpu", "--follow"]) == 0
    assert [row["step"] for row in read_rows(run / "eval.jsonl") if row["stage"] == "sft scores"] == [2, 6]
    assert "step-00000004 was deleted before it was asked (run.keep_last)" in caplog.text


@pytest.mark.full
def test_a_rewound_run_puts_later_scores_aside(tmp_path):
    run = tmp_path / "run"
    train(run, *ASKED, "evaluate.every=2", "run.keep_last=9")
    train(run, *ASKED, "evaluate.every=2", "run.keep_last=9", f"run.resume={run}/checkpoints/sft/step-00000004")
    names = sorted(path.name.rpartition("-")[0] if path.name.startswith(".aside") else path.name for path in (run / "benchmarks").iterdir())
    assert names == [".aside-sft-step-00000006", "backbone", "sft-step-00000002", "sft-step-00000004", "sft-step-00000006", "shown"]
    assert [step for _, step, _ in scores(run)] == [0, 2, 4, 6]


@pytest.mark.full
@pytest.mark.distributed
@pytest.mark.parametrize("layout", [(), ("layout.tensor=2",), ("layout.pipeline=2",)], ids=["data parallel", "tensor", "pipeline"])
def test_two_ranks_stop_together(tmp_path, layout):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port",
               str(free_port()), "-m", "nvlm_train", "train", *MODEL, *PICTURES, f"run.dir={run}", *ASKED, "guard.stop=true", *layout]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr[-3000:]     # torchrun's word for any failure
    assert done.stderr.count("stopped by the text guard after step 2 of sft") == 1, done.stderr[-3000:]
    assert (read_status(run).state, read_status(run).exit_code, read_next(run)) == ("regressed", 77, "stop")
    (_, _, before), (_, _, after) = scores(run)
    assert before > 0.8 and after < 0.5


@pytest.mark.full
@pytest.mark.distributed
def test_two_ranks_ask_checkpoints_beside_the_training(tmp_path):
    """Following a training from before its first checkpoint until its end, under another layout."""
    run = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    training = subprocess.Popen([sys.executable, "-m", "nvlm_train", "train", *MODEL, *PICTURES, f"run.dir={run}", *ASKED, "train.steps=40",
                                 "evaluate.at_checkpoints=false", "run.save_every=20", "run.keep_last=9"], env=environment,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = 120
        while not (run / "config.yaml").is_file() and training.poll() is None and until > 0:
            until -= 1
            subprocess.run(["sleep", "1"], check=True)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port",
                   str(free_port()), "-m", "nvlm_train", "eval-checkpoints", str(run), "layout.tensor=2", "--follow"]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        assert training.wait(120) == 0
    finally:
        training.kill()
    assert [row["step"] for row in read_rows(run / "eval.jsonl") if row["stage"] == "sft scores"] == [20, 40]


@pytest.mark.full
def test_both_sinks_get_scores_at_their_step(tmp_path):
    """TensorBoard's own reader finds the score, its interval and the difference from the backbone."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    train(run, *ASKED, "train.steps=2", "run.tensorboard=true", "evaluate.examples=2")
    events = event_accumulator.EventAccumulator(str(run / "tensorboard" / "sft"))
    events.Reload()
    own = scores(run)
    assert [(event.step, pytest.approx(event.value)) for event in events.Scalars("scores/demo_sums/score")] == [
        (step, score) for _, step, score in own]
    assert [event.step for event in events.Scalars("guard/demo_sums/delta")] == [2]
    assert {"answers/demo_sums/1", "answers/demo_sums/2"} <= set(events.Tags()["images"])


