"""wandb and TensorBoard, the real libraries: what they hold after a run, after a restart, and where no server answers."""

import base64
import io
import json
import logging
import socket
import sys
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from PIL import Image
from training_fakes import FakeEngine, make_batches, make_run, with_run
from wandb_files import history, records, run_record, stores

from nvlm_train.config.schema import Data, Source
from nvlm_train.redaction import REDACTED
from nvlm_train.training import tensorboard_sink, wandb_sink
from nvlm_train.training.loop import train
from nvlm_train.training.metrics import Recorder, flat
from nvlm_train.training.telemetry import job_facts, telemetry
from nvlm_train.training.wandb_sink import COLUMNS

needs_wandb = pytest.mark.skipif(__import__("importlib").util.find_spec("wandb") is None, reason="wandb is an optional extra")


@pytest.fixture(autouse=True)
def fresh_wandb(monkeypatch):
    """wandb reads its environment once a process, and keeps a process of its own: neither outlives a test."""
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_DATA_DIR", "set by the sink")     # and taken back afterwards
    monkeypatch.delenv("WANDB_DATA_DIR")
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def train_with(run, sinks, start=0, **engine):
    recorder = Recorder(run, FakeEngine(), sinks, [], lambda step: True, ["here"], None)
    return train(run, FakeEngine(**engine), make_batches(run, start), [recorder], start)


def example(size=(640, 320), **values) -> dict:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
    return {"task": "colour", "key": "k1", "images": [address], "prompt": "Which colour?", "answer": "blue", "truth": "red",
            "correct": False, **values}


def test_nothing_is_imported_or_sent_unless_asked_for(tmp_path, monkeypatch):
    for module in (wandb_sink, tensorboard_sink):
        monkeypatch.setattr(module, "import_module", lambda name: pytest.fail(f"imports {name}"))
    run = make_run(tmp_path)
    assert telemetry([run], run, tmp_path, 0) == []


def test_trackers_that_are_not_installed_cost_a_warning_each(tmp_path, monkeypatch, caplog):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    for module in (wandb_sink, tensorboard_sink):
        monkeypatch.setattr(module, "import_module", absent)
    run = with_run(make_run(tmp_path, steps=3), wandb="online", tensorboard=True)
    assert train_with(run, telemetry([run], run, tmp_path, 0)) == 3
    assert sorted(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING) == [
        "TensorBoard is off for the rest of this stage (ModuleNotFoundError: No module named 'torch.utils.tensorboard'); training goes on",
        "wandb is off for the rest of this stage (ModuleNotFoundError: No module named 'wandb'); training goes on"]


def test_rows_are_flattened_to_numbers():
    row = {"stage": "sft", "step": 3, "loss": 1.5, "mfu": None, "skipped": False, "tflops": {"vit": 2.0}, "ids": ["a"]}
    assert flat(row, "sft") == {"sft/step": 3, "sft/loss": 1.5, "sft/skipped": 0.0, "sft/tflops/vit": 2.0}


def test_a_job_is_known_by_its_processes_machines_and_place_in_slurm():
    assert job_facts({}, ["a", "a", "b", "b"]) == {"processes": 4, "machines": 2, "hosts": ["a", "b"]}
    slurm = {"SLURM_JOB_ID": "71", "SLURM_JOB_NODELIST": "dgx[01-02]", "SLURM_RESTART_COUNT": "2", "SLURM_JWT": "x"}
    assert job_facts(slurm, ["a"])["slurm"] == {"id": "71", "nodes": "dgx[01-02]", "restarts": "2"}


@needs_wandb
def test_wandb_keeps_one_run_over_a_restart_and_both_stages(tmp_path, monkeypatch):
    """Steps 1 to 4, a restart from step 2, then the other stage: three stores with one id. Every row is kept under a number of
    its own, so nothing is dropped when they are sent, and the newest row of a step is known by `resumed_at`."""
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    data = Data(blend={"web": Source("s3://user:hunter2@host/shards")})
    first, second = (with_run(make_run(tmp_path, stage=stage, steps=4, data=data), wandb="offline", wandb_project="mine")
                     for stage in ("pretrain", "sft"))
    for run, start, losses in ((first, 0, [1.0, 2.0, 3.0, 4.0]), (first, 2, [3.5, 4.5]), (second, 0, [0.5] * 4)):
        train_with(run, telemetry([first, second], run, tmp_path, start), start, losses=losses)

    written = stores(tmp_path)
    assert len(written) == 3
    about = [run_record(path) for path in written]
    assert {record.run_id for record in about} == {(tmp_path / "wandb_id").read_text()}
    assert about[0].project == "mine" and list(about[0].tags) == ["test", "nvlm_d", "pretrain", "sft"]
    config = {item.key: json.loads(item.value_json) for item in about[1].config.update}
    assert config["pretrain"]["data"]["blend"]["web"]["path"] == f"s3://{REDACTED}@host/shards"
    assert config["job"]["slurm"] == {"id": "71"} and set(config) >= {"pretrain", "sft", "job"}

    rows = [row for path in written for row in history(path)]
    assert [(row.get("pretrain/step"), row.get("pretrain/loss"), row.get("pretrain/resumed_at")) for row in rows[:6]] == [
        (1, 1.0, 0), (2, 2.0, 0), (3, 3.0, 0), (4, 4.0, 0), (3, 3.5, 2), (4, 4.5, 2)]
    assert [(row.get("sft/step"), row.get("sft/loss")) for row in rows[6:]] == [(step, 0.5) for step in range(1, 5)]
    numbers = [row["_step"] for row in rows]
    assert numbers == sorted(set(numbers))
    axes = {metric.name or metric.glob_name: metric.step_metric for record in records(written[0]) if
            record.WhichOneof("record_type") == "metric" for metric in [record.metric]}
    assert axes["pretrain/*"] == "pretrain/step"
    assert not any(b"hunter2" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@needs_wandb
def test_wandb_shows_answered_samples_with_their_pictures(tmp_path):
    run = with_run(make_run(tmp_path, steps=1), wandb="offline")
    sink, = telemetry([run], run, tmp_path, 0)
    sink.examples("pretrain", 1, [example(), example(key="k2", images=[], truth="green", correct=None)])
    sink.saved("pretrain", 1, 0.25)
    sink.evaluation({"stage": "pretrain", "step": 1, "loss": 1.5, "source_losses": {"web": 1.5}})
    sink.close()
    table, saved, validation = history(stores(tmp_path)[0])
    assert table["pretrain/step"] == 1 and saved["pretrain/checkpoint/seconds"] == 0.25
    assert validation["pretrain/validation/source_losses/web"] == 1.5
    files = stores(tmp_path)[0].parent / "files"
    content = json.loads((files / table["pretrain/examples/path"]).read_text())
    assert tuple(content["columns"]) == COLUMNS
    assert [row[1:] for row in content["data"]] == [["colour", "k1", "Which colour?", "blue", "red", False],
                                                    ["colour", "k2", "Which colour?", "blue", "green", None]]
    pictures = [Image.open(path).size for path in (tmp_path / "wandb" / "artifacts").rglob("*")
                if path.is_file() and path.read_bytes().startswith(b"\x89PNG")]
    assert sorted(pictures) == [(256, 64), (256, 128)]


@needs_wandb
def test_a_server_that_does_not_answer_costs_a_note_and_no_step(tmp_path, monkeypatch, caplog):
    """A port that nobody listens on. The steps are done before wandb gives up, and all rows are in a file then."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb_sink, "INIT_TIMEOUT_S", 3)
    run = with_run(make_run(tmp_path, steps=50), wandb="online")
    began = time.monotonic()
    sinks = telemetry([run], run, tmp_path, 0)
    stepped = []
    engine = FakeEngine(during=lambda step: stepped.append(time.monotonic() - began))
    train(run, engine, make_batches(run), [Recorder(run, engine, sinks, [], lambda step: True, ["here"], None)])
    assert len(stepped) == 50 and max(after - before for before, after in pairwise(stepped)) < wandb_sink.INIT_TIMEOUT_S
    note, = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert note.startswith("wandb cannot be reached (CommError: ") and note.endswith("send it later with `wandb sync`")
    assert [row["pretrain/step"] for row in history(stores(tmp_path)[0])] == list(range(1, 51))


def test_tensorboard_files_hold_curves_and_pictures_and_forget_what_is_trained_again(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator",
                                      reason="tensorboard is an optional extra and is not installed")
    run = with_run(make_run(tmp_path, steps=4), tensorboard=True)
    train_with(run, telemetry([run], run, tmp_path, 0))
    again = replace(run, train=replace(run.train, steps=3))
    sinks = telemetry([again], again, tmp_path, 2)
    sinks[0].examples("pretrain", 3, [example(), example(images=["data:image/png;base64,AAAA"])])
    train_with(again, sinks, 2, losses=[9.0])
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "pretrain")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 1.0), (3, 9.0)]
    assert events.Tags()["images"] == ["examples/1", "examples/2"]
    picture = Image.open(io.BytesIO(events.Images("examples/1")[0].encoded_image_string))
    assert picture.width == 256 and picture.height > 128 and picture.getpixel((5, 5)) == (255, 0, 0)
    assert min(picture.convert("L").crop((0, 128, 256, picture.height)).getextrema()) < 64     # a caption below
    text, = events.Tensors("examples/1/text_summary")
    assert b"truth: red" in text.tensor_proto.string_val[0]


def a_score(step, alarm=False):
    guard = {"backbone": 0.5, "delta": -0.25, "low": -0.3, "high": -0.2, "margin": 0.02, "alarm": alarm, "raised": alarm, "text": "gsm8k fell"}
    return {"stage": "sft", "step": step, "kind": "score", "task": "gsm8k", "guard": guard, "seconds": 1.0,
            "scores": {"score": 0.25, "low": 0.2, "high": 0.3, "questions": 40}}


@needs_wandb
def test_scores_answers_and_an_alarm_reach_wandb(tmp_path):
    """Rows at the stage's step, a table of answers, and wandb's alert, which is sent once."""
    run = with_run(make_run(tmp_path, stage="sft"), wandb="offline")
    [sink] = telemetry([run], run, tmp_path, 0)
    sink.scored(a_score(2), [])
    sink.scored(a_score(4, alarm=True), [example()])
    sink.close()
    [path] = stores(tmp_path)
    rows = [row for row in history(path) if "sft/scores/gsm8k/score" in row]
    assert [(row["sft/step"], row["sft/scores/gsm8k/score"], row["sft/guard/gsm8k/delta"]) for row in rows] == [(2, 0.25, -0.25), (4, 0.25, -0.25)]
    assert [row["sft/guard/gsm8k/alarm"] for row in rows] == [0, 1]
    assert not [key for key in rows[0] if key.startswith("sft/answers")] and rows[1]["sft/answers/gsm8k/nrows"] == 1
    assert [record.alert.text for record in records(path) if record.WhichOneof("record_type") == "alert"] == ["gsm8k fell"]


@needs_wandb
def test_a_job_beside_the_training_is_a_run_of_its_own(tmp_path):
    run = with_run(make_run(tmp_path, stage="sft"), wandb="offline", tensorboard=True)
    for apart in ("", "scores"):
        for sink in telemetry([run], run, tmp_path, 0, apart=apart):
            sink.scored(a_score(2), [])
            sink.close()
    names = {run_record(path).display_name: run_record(path).run_id for path in stores(tmp_path)}
    assert set(names) == {tmp_path.name, f"{tmp_path.name} scores"} and len(set(names.values())) == 2
    assert {path.name for path in (tmp_path / "tensorboard").iterdir()} == {"sft", "sft_scores"}
