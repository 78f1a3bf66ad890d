"""`run.profile`: real steps of the tiny recipes, recorded and taken apart; and what happens when something of it fails."""

import gzip
import json
import logging
from collections import Counter
from pathlib import Path

import pytest
from training_fakes import FakeEngine, make_batches, make_run

from nvlm_train.config.compose import compose
from nvlm_train.parallel import groups
from nvlm_train.training.logs import read_rows
from nvlm_train.training.loop import train
from nvlm_train.training.profile import hook, session
from nvlm_train.training.profile.hook import Profile
from nvlm_train.training.profile.marks import Marks
from nvlm_train.training.profile.parts import LABELS
from nvlm_train.training.profile.summary import Share
from nvlm_train.training.profile.trace import read_trace
from nvlm_train.training.stages import build_engine, train_all

WORDS = ("stage=sft", "train.global_batch=2", "train.steps=3", "train.warmup_steps=1", "run.eval_batches=1", "run.examples=0",
         "run.device=cpu", "model.dtype=fp32")


@pytest.fixture(scope="module", autouse=True)
def job():
    """The first engine joins a job of one process; leave it when done."""
    yield
    groups.stop()


def run_of(folder: Path, *words: str) -> Path:
    train_all(compose([*WORDS, f"run.dir={folder}", *words]))
    return folder


@pytest.fixture(scope="module", params=[("nvlm_d_tiny", "none"), ("nvlm_x_tiny", "full")], ids=["d", "x_recomputed"])
def runs(request, tmp_path_factory):
    """(architecture, run directory without, and with a profile of steps 2 and 3)."""
    recipe, recompute = request.param
    words = (f"recipe={recipe}", f"model.recompute={recompute}")
    folder = tmp_path_factory.mktemp(recipe)
    return recipe[5], run_of(folder / "plain", *words), run_of(folder / "profiled", *words, "profile=2-3")


def curve(folder: Path) -> list:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_rows(folder / "metrics.jsonl")]


def test_a_profile_changes_no_bit_and_leaves_nothing_where_none_was_asked_for(runs):
    _, plain, profiled = runs
    assert curve(plain) == curve(profiled) and len(curve(plain)) == 3
    assert not (plain / "profile").exists() and "profile/" not in (plain / "report.html").read_text()


def test_the_parts_times_are_the_steps_and_their_work_is_all_of_it(runs):
    letter, _, profiled = runs
    told, rows = json.loads((profiled / "profile/sft/summary.json").read_text()), read_rows(profiled / "metrics.jsonl")[1:]
    assert told["steps"] == [2, 3] and told["notes"] == [] and told["mfu"] is None
    assert sum(part["seconds"] for part in told["components"].values()) == pytest.approx(told["step_s"], rel=1e-9)
    assert sum(part["share"] for part in told["components"].values()) == pytest.approx(1, rel=1e-9)
    assert told["steps_s"] == pytest.approx([row["step_s"] for row in rows], abs=1e-5)
    work = sum(row["tflops"]["total"] * row["step_s"] for row in rows) / 2 * 1e12
    assert told["flops"] == sum(part["flops"] for part in told["components"].values()) == pytest.approx(work, rel=1e-9)
    expected = set(LABELS) - {"unattributed"} - ({"cross_attention"} if letter == "d" else set())
    assert set(told["components"]) == expected


def test_forward_backward_and_what_is_computed_again(runs):
    letter, _, profiled = runs
    parts = json.loads((profiled / "profile/sft/summary.json").read_text())["components"]
    again = {"recompute"} if letter == "x" else set()
    assert set(parts["vision"]["phases"]) == {"forward"}                             # frozen
    assert set(parts["connector"]["phases"]) == set(parts["output"]["phases"]) == {"forward", "backward"}
    for name in ("self_attention", "mlp", *(["cross_attention"] if letter == "x" else [])):
        assert set(parts[name]["phases"]) == {"forward", "backward"} | again
    assert parts["optimizer"]["phases"] == parts["communication"]["phases"] == {}


def test_functions_of_the_backward_belong_to_the_part_that_made_them(runs):
    """Functions that only one part of the model has, each as often as it is made: of two layers in the tiny language model."""
    letter, _, profiled = runs
    trace = read_trace(json.loads(gzip.decompress((profiled / "profile/sft/trace-rank0.json.gz").read_bytes())))
    owners = Counter((node.name.rpartition(" ")[2], node.owner.component) for node in trace.nodes)
    rows = sum(1 for event in trace.main if event.name == "nvlm.connector")
    layers = compose([*WORDS, f"recipe=nvlm_{letter}_tiny"])[0].model.language.layers
    for name, part, times in (("SiluBackward0", "mlp", layers * rows), ("_TokenLossesBackward", "output", rows)):
        assert {key: count for key, count in owners.items() if key[0] == name} == {(name, part): times}
    if letter == "d":       # X's connector is one linear
        gelu = "GeluBackward0"
        assert {key: count for key, count in owners.items() if key[0] == gelu} == {(gelu, "connector"): rows}
    read = {part for name, part in owners if name == "TanhBackward0"}                # the gates
    assert read == ({"cross_attention"} if letter == "x" else set())
    assert not any(part == "unattributed" for _, part in owners)


def test_the_page_stands_alone_and_the_report_links_it(runs):
    letter, _, profiled = runs
    page = (profiled / "profile/sft/profile.html").read_text()
    assert all(LABELS[name] in page for name in ("vision", "self_attention", "optimizer", "data"))
    assert (LABELS["cross_attention"] in page) == (letter == "x")
    assert "<script" not in page and "http" not in page.replace("http-equiv", "") and "src=" not in page
    assert 'href="profile/sft/profile.html"' in (profiled / "report.html").read_text()


def test_marks_are_gone_when_they_are_removed():
    run = compose([*WORDS, "recipe=nvlm_x_tiny", "run.dir=unused"])[0]
    engine = build_engine(run)

    def hooks() -> int:
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in engine.stages()[0].modules())

    before = hooks()
    marks = Marks(engine.stages())
    assert hooks() > before
    marks.remove()
    assert hooks() == before
    engine.close()


# -- with a stand-in for the engine ----------------------------------------------------------------------------------


def profiled(tmp_path, profile="2-3", engine=None, start=0, steps=5):
    run, engine = make_run(tmp_path, steps=steps, run={"profile": profile}), engine or FakeEngine()
    train(run, engine, make_batches(run, start), [Profile(run, engine, None, None)], start)
    file = tmp_path / "profile/pretrain/summary.json"
    return json.loads(file.read_text()) if file.exists() else None


def test_with_a_peak_each_part_has_its_own_mfu(tmp_path):
    """A second rank that measured the same: work of both over the time of both."""
    run, engine = make_run(tmp_path, run={"profile": "2-3"}), FakeEngine(others=lambda share: [share])
    train(run, engine, make_batches(run), [Profile(run, engine, "some GPU", 1e9)])
    told = json.loads((tmp_path / "profile/pretrain/summary.json").read_text())
    assert told["ranks"] == 2 and [row["rank"] for row in told["per_rank"]] == [0, 1]
    assert told["mfu"] == pytest.approx(told["flops"] / (told["step_s"] * 2 * 1e9))
    assert told["others"] is None       # step 1 warms up
    assert told["notes"] == ["the profiler saw no work of the GPU (it may lack the permission): these are times of the host"]
    assert "MFU" in (tmp_path / "profile/pretrain/profile.html").read_text()


def test_a_trace_that_cannot_be_written_is_a_note(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(session, "write_atomically", full)
    told = profiled(tmp_path)
    assert told["notes"] == ["rank 0: trace-rank0.json.gz could not be written (No space left on device)"]
    assert told["step_s"] > 0 and not list(tmp_path.rglob("*.gz"))
    assert "No space left on device" in (tmp_path / "profile/pretrain/profile.html").read_text()


def test_a_summary_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "profile").write_text("a file where the folder should be")
    assert profiled(tmp_path) is None
    assert "could not be written" in caplog.text and "training goes on" in caplog.text


def test_a_rank_without_a_profiler_is_named_and_the_others_still_tell(tmp_path):
    told = profiled(tmp_path, engine=FakeEngine(others=lambda _: [Share(None, None, "RuntimeError: no profiler")]))
    assert told["notes"] == ["rank 1: RuntimeError: no profiler", "rates are left out, for want of all ranks' times"]
    assert told["flops_per_s"] is None and [row["rank"] for row in told["per_rank"]] == [0]


def test_where_no_rank_has_one_training_goes_on(tmp_path, monkeypatch, caplog):
    def refused(*_):
        raise RuntimeError("Can't start the profiler twice")

    monkeypatch.setattr(hook, "Session", refused)
    engine = FakeEngine()
    assert profiled(tmp_path, engine=engine) is None
    assert "Can't start the profiler twice" in caplog.text and engine.gathered == 1


def test_a_rank_without_one_takes_part_where_the_run_is_stopped_among_the_steps(tmp_path, monkeypatch):
    """Or the others would wait for it."""
    def refused(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(hook, "Session", refused)
    engine = FakeEngine()
    engine.any_rank = lambda flag: len(engine.rates) == 2
    with pytest.raises(Exception, match="everything is saved"):
        profiled(tmp_path, engine=engine)
    assert engine.gathered == 1


@pytest.mark.parametrize("start, steps", [(0, [2, 3]), (2, [3]), (3, None)])
def test_a_run_that_goes_on_profiles_what_is_left_of_the_steps(tmp_path, start, steps, caplog):
    caplog.set_level(logging.INFO)
    told = profiled(tmp_path, start=start)
    assert (told and told["steps"]) == steps
    assert ("nothing is profiled" in caplog.text) == (steps is None)


def test_a_run_that_is_stopped_tells_the_steps_that_it_had(tmp_path):
    run, engine = make_run(tmp_path, run={"profile": "2-4"}), FakeEngine()
    watcher = Profile(run, engine, None, None)
    engine.any_rank = lambda flag: len(engine.rates) == 3
    with pytest.raises(Exception, match="everything is saved"):
        train(run, engine, make_batches(run), [watcher])
    assert json.loads((tmp_path / "profile/pretrain/summary.json").read_text())["steps"] == [2, 3]


def test_an_error_within_a_profiled_step_ends_the_recording(tmp_path):
    def fails(step):
        if step == 3:
            raise ValueError("of this rank alone")

    with pytest.raises(ValueError, match="of this rank alone"):
        profiled(tmp_path, engine=FakeEngine(during=fails))
    assert profiled(tmp_path / "another")["steps"] == [2, 3]        # the profiler is free again
