import json
import os
import subprocess
import sys

import pytest

from nvlm_train.errors import TrainingError
from nvlm_train.training.logs import EVAL, METRICS, SAMPLES, JsonLines, finite, read_rows, write_atomically
from nvlm_train.training.run_dir import claim, cut_after, scores_aside


def write_log(path, rows, tail=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def steps(path):
    return [(row["stage"], row["step"]) for row in read_rows(path)]


@pytest.fixture
def two_stages(tmp_path):
    rows = [{"stage": stage, "step": step} for stage in ("pretrain", "sft") for step in (1, 2, 3)]
    for name in (METRICS, SAMPLES):
        write_log(tmp_path / name, rows)
    validations = [{"stage": "pretrain", "step": 3}, {"stage": "sft", "step": 3}]
    write_log(tmp_path / EVAL, [*validations, {"task": "easy_vqa", "scores": {}}])
    return tmp_path


def test_rows_after_the_checkpoint_are_cut_from_every_log(two_stages):
    assert cut_after(two_stages, "sft", 2) == 3
    assert steps(two_stages / METRICS) == [("pretrain", 1), ("pretrain", 2), ("pretrain", 3), ("sft", 1), ("sft", 2)]
    assert steps(two_stages / SAMPLES) == steps(two_stages / METRICS)
    assert read_rows(two_stages / EVAL) == [{"stage": "pretrain", "step": 3}, {"task": "easy_vqa", "scores": {}}]


def test_going_back_to_an_earlier_stage_cuts_the_later_one_whole(two_stages):
    cut_after(two_stages, "pretrain", 1)
    assert steps(two_stages / METRICS) == [("pretrain", 1)]


def test_a_line_that_a_crash_cut_short_is_dropped_and_new_rows_start_clean(tmp_path):
    write_log(tmp_path / METRICS, [{"stage": "sft", "step": 1}, {"stage": "sft", "step": 2}], tail='{"stage": "sft", "st')
    assert steps(tmp_path / METRICS) == [("sft", 1), ("sft", 2)], "readers pass it over"
    assert cut_after(tmp_path, "sft", 2) == 1
    log = JsonLines(tmp_path / METRICS)
    log.append({"stage": "sft", "step": 3})
    log.close()
    assert steps(tmp_path / METRICS) == [("sft", 1), ("sft", 2), ("sft", 3)]


def test_a_whole_row_without_its_newline_is_written_again_rather_than_glued_to(tmp_path):
    write_log(tmp_path / METRICS, [{"stage": "sft", "step": 1}], tail='{"stage": "sft", "step": 2}')
    cut_after(tmp_path, "sft", 2)
    assert steps(tmp_path / METRICS) == [("sft", 1)]


def test_nothing_to_cut_leaves_the_files_alone(two_stages):
    before = (two_stages / METRICS).stat().st_ino
    assert cut_after(two_stages, "sft", 3) == 0
    assert (two_stages / METRICS).stat().st_ino == before


def test_an_interrupted_replacement_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / METRICS
    path.write_text("old\n")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        write_atomically(path, b"new\n")
    assert path.read_text() == "old\n"


def test_a_run_is_not_overwritten_without_resume(tmp_path):
    (tmp_path / METRICS).write_text("")
    with pytest.raises(TrainingError, match=r"already holds a run and run\.resume=never.*run\.resume=auto"):
        claim(tmp_path, "never")
    claim(tmp_path, "auto").release()


def test_a_fresh_directory_is_made_and_may_be_claimed_again_before_anything_was_written(tmp_path):
    claim(tmp_path / "new" / "run", "never").release()
    claim(tmp_path / "new" / "run", "never").release()


def test_a_directory_of_something_else_is_refused_even_with_resume(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(TrainingError, match="holds no run.*thesis.tex"):
        claim(tmp_path, "auto")


HOLDER = """
import sys, time
from pathlib import Path
from nvlm_train.training.run_dir import claim
lock = claim(Path(sys.argv[1]), "auto")
print("held", flush=True)
time.sleep(60)
"""


def test_two_jobs_cannot_share_a_run_directory_and_a_dead_one_leaves_no_lock(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TrainingError, match=f"in use by process {holder.pid} on "):
            claim(tmp_path, "auto")
    finally:
        holder.kill()
        holder.wait()
    claim(tmp_path, "auto").release()


def test_a_full_disk_is_named(tmp_path):
    log = JsonLines(tmp_path / METRICS)
    log._file.close()
    log._file = open("/dev/full", "w")  # noqa: SIM115 (closed below)
    with pytest.raises(TrainingError, match=r"metrics\.jsonl: No space left on device"):
        log.append({"stage": "sft"})
    with pytest.raises(OSError):
        log._file.close()


def test_numbers_that_json_lacks_become_null():
    row = {"a": float("nan"), "b": [1.5, float("-inf")], "c": {"d": float("inf"), "e": "text"}, "f": True, "g": 3}
    assert finite(row) == {"a": None, "b": [1.5, None], "c": {"d": None, "e": "text"}, "f": True, "g": 3}


def test_scores_of_later_steps_are_put_aside(tmp_path):
    """Of this stage and of later ones; the backbone's, the newest examples and what is put aside already stay."""
    for name in ("pretrain-step-00000010", "sft-step-00000002", "sft-step-00000004", "backbone", "shown", ".aside-sft-step-00000009-0"):
        (tmp_path / "benchmarks" / name).mkdir(parents=True)
    assert scores_aside(tmp_path, "sft", 2) == 1
    assert scores_aside(tmp_path, "pretrain", 10) == 1, "finetuning starts anew from other weights"
    kept = {path.name for path in (tmp_path / "benchmarks").iterdir() if not path.name.startswith(".aside-")}
    assert kept == {"pretrain-step-00000010", "backbone", "shown"}
    assert len(list((tmp_path / "benchmarks").glob(".aside-*"))) == 3
    assert scores_aside(tmp_path / "no run", "sft", 0) == 0
