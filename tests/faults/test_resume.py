"""Killed at any step and started again, a run goes on as if nothing had happened: on the same layout bit for bit, on another
within the parity tolerance, and every sample of the order is used exactly once. Real processes, real SIGKILL, real CLI."""

import shutil
from pathlib import Path

import pytest

from nvlm_train.training.audit import audit
from tests.faults import jobs
from tests.faults.jobs import Job, kill_after, rows, wait_for

pytestmark = pytest.mark.distributed

STEPS, BATCH = 8, 16
SETTINGS = ["recipe=nvlm_d_tiny", "stage=all", f"train.steps={STEPS}", "train.warmup_steps=2", f"train.global_batch={BATCH}",
            "run.save_every=3", "run.eval_batches=1"]
LOSS, NORM = 2e-6, 3e-4    # the parity bounds, see tests/parity/test_layouts.py


def start(run_dir: Path, ranks: int = 1, *overrides: str) -> Job:
    return jobs.start(run_dir, *SETTINGS, *overrides, ranks=ranks)


def curve(run_dir: Path, *fields: str) -> list[tuple]:
    return [(row["stage"], row["step"], *(row[f] for f in fields)) for row in rows(run_dir)]


def assert_every_slot_once(run_dir: Path, reference: Path) -> None:
    for stage in ("pretrain", "sft"):
        steps = [row for row in rows(run_dir, "samples.jsonl") if row["stage"] == stage]
        assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
        assert [row["first_slot"] for row in steps] == [n * BATCH for n in range(STEPS)]
        assert all(len(row["ids"]) == BATCH for row in steps)
        assert [row["ids"] for row in steps] == [row["ids"] for row in rows(reference, "samples.jsonl") if row["stage"] == stage]
    assert [(found.steps, found.wrong, found.problems) for found in audit(run_dir)] == [(STEPS, 0, [])] * 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    start(run_dir).wait()
    assert len(rows(run_dir)) == 2 * STEPS
    return run_dir


def test_resume_on_the_same_layout_is_bit_equal(undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    kill_after(start(run_dir), run_dir, "pretrain", 5)      # two steps after the save at 3
    kill_after(start(run_dir), run_dir, "sft", 2)           # before the stage's first save: sft starts over, pretraining does not
    kill_after(start(run_dir), run_dir, "sft", 7)
    start(run_dir).wait()
    assert curve(run_dir, "loss", "grad_norm", "lr", "tokens") == curve(undisturbed, "loss", "grad_norm", "lr", "tokens")
    assert_every_slot_once(run_dir, undisturbed)


@pytest.mark.parametrize(("before", "after"), [
    ((2, "layout.tensor=2"), (2, "layout.pipeline=2")),
    pytest.param((1, "layout.tensor=1"), (2, "layout.tensor=1"), marks=pytest.mark.full),       # data parallel 1 -> 2
    pytest.param((2, "layout.context=2"), (1, "layout.context=1"), marks=pytest.mark.full),
    pytest.param((1, "layout.context=1"), (2, "layout.context=2"), marks=pytest.mark.full),
], ids=["TP2 to PP2", "DP1 to DP2", "CP2 to CP1", "CP1 to CP2"])
def test_resume_on_another_layout_keeps_the_curve(undisturbed, tmp_path, before, after):
    run_dir = tmp_path / "run"
    job = start(run_dir, *before)
    wait_for(job, run_dir, "sft", 4)
    job.kill_one_rank() if before[0] > 1 else job.kill()
    start(run_dir, *after).wait()
    expected, got = curve(undisturbed, "loss", "grad_norm"), curve(run_dir, "loss", "grad_norm")
    assert [row[:2] for row in expected] == [row[:2] for row in got]
    for (stage, step, loss, norm), (_, _, other_loss, other_norm) in zip(expected, got):
        assert other_loss == pytest.approx(loss, rel=LOSS), f"{stage} step {step}"
        assert other_norm == pytest.approx(norm, rel=NORM), f"{stage} step {step}"
    assert_every_slot_once(run_dir, undisturbed)


def test_a_finished_run_has_nothing_to_resume(undisturbed):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    start(undisturbed).wait()
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def test_resuming_in_another_order_of_samples_is_refused(undisturbed, tmp_path):
    """With another seed the checkpoint's cursor would repeat some samples and skip others."""
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    job = start(run_dir, 1, f"train.steps={STEPS + 1}", "train.seed=99")
    assert job.process.wait(240) == 2
    said = job.log.read_text()
    assert "the data is not what" in said and "init=" in said
    assert rows(run_dir) == rows(undisturbed)
