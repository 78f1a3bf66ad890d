"""Runs on a real, small Slurm: stopped, killed, requeued, chained, and each time the same losses as the undisturbed run.

The whole story is told at the end: python -m pytest -q tests/launch/test_slurm.py
"""

import os
import signal
import time

import pytest
from slurm_cluster import until
from submitted import SETTINGS, STEPS, Submitted

from nvlm_train.engine.checkpoint import resolve
from nvlm_train.training.audit import audit
from nvlm_train.training.status import read_status
from tests.engine.launching import ROOT
from tests.faults import jobs

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

LOSS, NORM = 2e-6, 3e-4    # between layouts: the parity bounds, see tests/parity/test_layouts.py
LAYOUTS = ("stage=all", "stages.sft.layout.tensor=2")     # pretraining data parallel, finetuning tensor parallel


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cluster) -> Submitted:
    """Both stages in one launch of two processes, without Slurm."""
    run = Submitted(cluster, tmp_path_factory.mktemp("undisturbed"))
    jobs.start(run.run_dir, *SETTINGS, *LAYOUTS, ranks=2).wait(600)
    return run


@pytest.fixture
def run(cluster, tmp_path):
    yield Submitted(cluster, tmp_path / "submitted")
    cluster.end_jobs()


def assert_as_undisturbed(run: Submitted, undisturbed: Submitted) -> None:
    """To the last bit, no step lost, none done twice, every sample where the plan has it."""
    assert run.curve() == undisturbed.curve()
    assert run.samples() == undisturbed.samples()
    assert [(found.steps, found.wrong, found.problems) for found in audit(run.run_dir)] == [(STEPS, 0, [])] * 2
    run.tell(f"{len(run.curve())} steps, all losses equal to the undisturbed run's")


def test_the_story_of_a_run(run, undisturbed, record_property):
    """Submit, preempt, requeue, resume, chain to the next stage under another layout, a killed rank, the end."""
    began = time.monotonic()
    run.submit(*LAYOUTS, "cluster.chain=true")
    run.wait_for_step("pretrain", 1)
    run.tell(f"first step {time.monotonic() - began:.1f} s after nvlm submit was typed")

    run.wait_for_step("pretrain", 4)
    run.ask_to_stop()
    run.wait_for_requeue()
    stopped = read_status(run.run_dir)
    assert (stopped.state, stopped.exit_code, stopped.step, run.word()) == ("preempted", 75, run.steps("pretrain"), "requeue")
    run.tell(f"preempted after step {stopped.step}, everything saved: {stopped}")
    run.wait_for_step("pretrain", STEPS)
    assert run.resumed_from() == [("pretrain", stopped.step)]
    run.tell(f"resumed after step {stopped.step}")

    assert run.wait_for_end() == "COMPLETED"
    assert run.word() == "done"
    first, note = run.number, run.run_dir / "slurm" / "nvlm_d_tiny-sft.sbatch.job"
    until(lambda: note.exists() and note.read_text().strip(), 30, "the second job of the chain")
    run.number = note.read_text().strip()
    run.tell(f"job {first} is done and has submitted job {run.number}")

    run.wait_for_step("sft", 5)
    killed_at = run.steps("sft")
    os.kill(run.ranks()[1], signal.SIGKILL)
    dead = time.monotonic()
    run.tell(f"rank 1 killed after step {killed_at} of sft")
    run.wait_for_requeue()
    run.wait_for_step("sft", killed_at + 1)
    recovery = time.monotonic() - dead
    resumed = run.resumed_from()[-1][1]
    run.tell(f"goes on after step {resumed}: {killed_at - resumed} steps lost; first new step {recovery:.1f} s after the kill")
    assert run.wait_for_end() == "COMPLETED"
    run.tell(f"job {run.number} is done: {read_status(run.run_dir)}")

    assert killed_at - resumed <= 3, "no more than run.save_every"
    assert_as_undisturbed(run, undisturbed)
    record_property("story", run.story)


@pytest.mark.full
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_four_ranks_hear_of_the_end_and_go_on_as_if_nothing_had_happened(run, undisturbed, launcher):
    """SIGUSR1 reaches the batch shell alone; all ranks stop after the same step, whichever way they were started."""
    run.submit(*LAYOUTS, "layout.pipeline=2", f"cluster.launcher={launcher}", ranks_per_node=2)
    run.wait_for_step("pretrain", 4)
    run.ask_to_stop()
    run.wait_for_requeue()
    stopped = read_status(run.run_dir)
    assert (stopped.state, run.word()) == ("preempted", "requeue")
    assert stopped.step == run.steps("pretrain") < STEPS
    assert run.wait_for_end() == "COMPLETED" and run.word() == "done"
    assert run.resumed_from() == [("pretrain", stopped.step)]
    assert run.samples() == undisturbed.samples()
    for (stage, step, loss, norm), (*place, other_loss, other_norm) in zip(
            undisturbed.curve("loss", "grad_norm"), run.curve("loss", "grad_norm"), strict=True):
        assert place == [stage, step]
        assert other_loss == pytest.approx(loss, rel=LOSS), f"{stage} step {step}"
        assert other_norm == pytest.approx(norm, rel=NORM), f"{stage} step {step}"


@pytest.mark.full
def test_a_save_longer_than_torchruns_half_minute_is_finished(run):
    """torchrun kills its workers 30 s after it is asked to stop; here every checkpoint takes 35 s longer than it would."""
    run.environment["NVLM_TEST_SLOW_SAVE_S"] = "35"
    run.environment["PYTHONPATH"] = f"{ROOT / 'tests' / 'launch' / 'slow_save'}:{ROOT}"
    run.submit("stage=pretrain", "run.save_every=0", "train.steps=500")
    run.wait_for_step("pretrain", 2)
    run.ask_to_stop()
    run.wait_for_requeue(timeout=180)
    stopped = read_status(run.run_dir)
    assert (stopped.state, stopped.step, run.word()) == ("preempted", run.steps("pretrain"), "requeue")
    assert resolve(run.run_dir / "checkpoints" / "pretrain").name == f"step-{stopped.step:08}"
    cancel(run)


@pytest.mark.full
def test_the_time_limit_is_survived(run):
    """Nobody asks but Slurm, half a minute before the end."""
    run.submit("stage=pretrain", "train.steps=5000", "cluster.time=60", "cluster.signal_s=30", "run.wandb=offline")
    run.wait_for_step("pretrain", 2)
    # However long it took to come here: one to two minutes are left now.
    hours, minutes, _ = map(int, run.cluster.job(run.number)["RunTime"].split(":"))
    run.set_time_limit(60 * hours + minutes + 2)
    run.wait_for_requeue(timeout=240)
    run.set_time_limit(60)
    stopped = read_status(run.run_dir)
    assert (stopped.state, run.word()) == ("preempted", "requeue")
    assert stopped.step == run.steps("pretrain") > 0
    run.wait_for_step("pretrain", stopped.step + 2)
    assert run.resumed_from() == [("pretrain", stopped.step)]
    done = [step for _, step, _ in run.curve("loss")]
    assert done == list(range(1, len(done) + 1)), "none lost, none twice"
    one_id = (run.run_dir / "wandb_id").read_text()
    assert [path.name.rpartition("-")[2] for path in (run.run_dir / "wandb").glob("offline-run-*")] == [one_id] * 2
    cancel(run)


@pytest.mark.full
def test_a_node_that_dies_costs_no_more_than_the_steps_since_the_last_checkpoint(cluster, run, undisturbed):
    """Slurm notices by itself (SlurmdTimeout), requeues, and waits until the node is back."""
    dying = cluster.nodes[1]
    run.submit(*LAYOUTS)
    run.wait_for_step("pretrain", 5)
    cluster.kill_node(dying)
    before = run.steps("pretrain")
    run.tell(f"{dying} is dead after step {before}")
    until(lambda: cluster.job(run.number)["Restarts"] == "1", 180, lambda: f"the restart: {cluster.job(run.number)}")
    cluster.start_node(dying)
    cluster.wait_for_idle_nodes()
    time.sleep(5)       # a part of what Slurm holds the job back for: a start at once finds the dead node's step in its way
    run.wait_for_requeue()
    assert run.wait_for_end() == "COMPLETED"
    (stage, step), = run.resumed_from()
    assert stage == "pretrain" and before - step <= 3
    assert_as_undisturbed(run, undisturbed)


@pytest.mark.full
def test_a_run_that_gets_nowhere_is_stopped(run):
    """Its data cannot be read, and no restart will change that."""
    run.submit("stage=pretrain", "data.blend.tiny.path=/nonexistent/shards", "run.max_restarts=1")
    run.wait_for_requeue(1)
    failed = read_status(run.run_dir)
    assert (failed.state, failed.restarts_without_progress, run.word()) == ("failed", 0, None)
    run.wait_for_requeue(2)
    assert run.wait_for_end() == "FAILED"
    stuck = read_status(run.run_dir)
    assert (stuck.state, stuck.restarts_without_progress, run.word()) == ("stuck", 2, "stop")
    assert "/nonexistent/shards" in stuck.error
    assert int(run.cluster.job(run.number)["Restarts"]) == 2


@pytest.mark.full
def test_a_cancelled_job_stays_cancelled(run):
    run.submit("stage=pretrain", "train.steps=5000")
    run.wait_for_step("pretrain", 2)
    cancel(run)
    assert run.cluster.job(run.number)["Restarts"] == "0"


def cancel(run: Submitted) -> None:
    """As a person does; the job must stay away, though it was told to stop as at a time limit."""
    run.cluster.ask("scancel", run.number)
    assert run.wait_for_end(60) == "CANCELLED"
    until(lambda: not run.ranks(), 60, "the end of the ranks")
    assert run.cluster.ask("squeue", "-h", f"--jobs={run.number}", "--states=all", "-o", "%T") == "CANCELLED"
