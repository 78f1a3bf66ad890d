"""The batch script, run whole against stand-ins for Slurm: how each end of a run becomes a requeue, an end, or the next stage."""

import signal
import subprocess
from pathlib import Path

import pytest
from fake_slurm import Done, FakeSlurm

from nvlm_train.config.cluster_file import compose_cluster
from nvlm_train.config.compose import compose
from nvlm_train.config.submission import take_submission
from nvlm_train.launching.jobs import Job, evaluation_job, plan_jobs
from nvlm_train.launching.script import render

TINY = ("recipe=nvlm_d_tiny", "cluster=local_slurm", "nodes=2")


@pytest.fixture
def slurm(tmp_path) -> FakeSlurm:
    return FakeSlurm(tmp_path / "fakes")


def jobs_of(slurm: FakeSlurm, *words: str) -> list[Job]:
    asked, rest = take_submission([*TINY, f"cluster.python={slurm.python}", *words])
    cluster = compose_cluster(asked.cluster, asked.changes)
    return plan_jobs(asked, cluster, rest, compose(rest), slurm.folder.parent)


def scripts_of(slurm: FakeSlurm, *words: str) -> list[str]:
    return [render(job, "local_slurm") for job in jobs_of(slurm, *words)]


def run(slurm: FakeSlurm, rank: str, *signals: signal.Signals, words: tuple[str, ...] = (), **environment: str) -> Done:
    return slurm.run(scripts_of(slurm, *words)[0], signals, RANK_DOES=rank, **environment)


def test_a_finished_run_ends_the_job(slurm):
    done = run(slurm, "leave done")
    assert done.code == 0, done.told
    assert not done.called("scontrol") and not done.called("scancel") and not done.called("sbatch")


@pytest.mark.parametrize("tracking", [{}, {"SIGNAL_ALL": "yes"}], ids=["cgroups", "process tree"])
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_a_warning_before_the_time_limit_reaches_the_ranks_and_requeues(slurm, launcher, tracking):
    """A rank that heard nothing would sleep on."""
    done = run(slurm, "wait requeue", signal.SIGUSR1, words=(f"cluster.launcher={launcher}",), **tracking)
    assert done.code == 0, done.told
    assert done.called("scancel") == ["scancel --signal=TERM 77.0"], "the ranks' step alone, once within 20 seconds"
    assert done.called("scontrol") == ["scontrol requeue 77"]
    assert "SIGUSR1 (the time limit is near" in done.told and "requeue 1 of at most 50" in done.told


def test_the_time_limit_itself_after_a_warning_still_requeues(slurm):
    done = run(slurm, "save requeue", signal.SIGUSR1, signal.SIGTERM, JOB_STATE="COMPLETING")
    assert done.called("scontrol") == ["scontrol requeue 77"], done.told


def test_preemption_with_grace_requeues(slurm):
    done = run(slurm, "wait requeue", signal.SIGTERM)
    assert done.called("scontrol") == ["scontrol requeue 77"], done.told


def test_a_cancelled_job_stays_cancelled(slurm):
    done = run(slurm, "wait requeue", signal.SIGTERM, JOB_STATE="COMPLETING")
    assert (done.code, done.called("scontrol")) == (143, []), done.told


def test_a_run_that_finishes_while_it_is_asked_to_stop_is_done(slurm):
    done = run(slurm, "wait done", signal.SIGTERM, JOB_STATE="COMPLETING")
    assert (done.code, done.called("scontrol")) == (0, []), done.told


def test_a_run_that_dies_without_a_word_is_requeued_and_an_old_word_does_not_count(slurm):
    run_dir = slurm.folder.parent / "runs" / "nvlm_d_tiny"
    run_dir.mkdir(parents=True)
    (run_dir / "next").write_text("done\n", encoding="ascii")
    done = run(slurm, "die")
    assert done.called("scontrol") == ["scontrol requeue 77"], done.told


@pytest.mark.parametrize(("rank", "words", "environment", "code", "sentence"), [
    ("leave stop", (), {}, 2, "status.json says why"),
    ("die", ("cluster.max_requeues=3",), {"SLURM_RESTART_COUNT": "3"}, 3, "cluster.max_requeues=3: not again"),
    ("leave requeue", (), {"SCONTROL_STATUS": "1"}, 4, "Slurm does not requeue this job"),
    ("leave requeue", ("cluster.requeue=false",), {}, 75, "cluster.requeue=false"),
    ("die", ("cluster.requeue=false",), {}, 1, "cluster.requeue=false"),
])
def test_ends_that_a_person_hears_of(slurm, rank, words, environment, code, sentence):
    done = run(slurm, rank, words=words, **environment)
    assert done.code == code and sentence in done.told, done.told
    assert len(done.called("scontrol")) == (code == 4)


def test_a_restart_has_a_rendezvous_and_logs_of_its_own(slurm):
    first, second = run(slurm, "die"), run(slurm, "die", SLURM_RESTART_COUNT="1")
    assert [next(word for word in done.agent if "--rdzv-id" in word) for done in (first, second)] == [
        "--rdzv-id=77-0", "--rdzv-id=77-1"]
    assert all(Path(done.environment["NVLM_LOGS"]).is_dir() for done in (first, second))
    assert first.environment["NVLM_LOGS"] != second.environment["NVLM_LOGS"]


def test_words_reach_the_ranks_as_they_were_written(slurm):
    nasty = "data.system_prompt=It's \"so\" $(touch /tmp/never) `id` ; * \\"
    done = run(slurm, "leave done", words=(nasty, "train.lr=1e-2"))
    run_dir = slurm.folder.parent / "runs" / "nvlm_d_tiny"
    assert done.words[-4:] == ["recipe=nvlm_d_tiny", nasty, "train.lr=1e-2", f"run.dir={run_dir}"]
    assert done.agent[:2] == ["-m", "torch.distributed.run"] and "--nproc-per-node=2" in done.agent and "--nnodes=2" in done.agent
    assert done.environment["OMP_NUM_THREADS"] == "1" and "never" not in {path.name for path in Path("/tmp").iterdir()}


def test_one_task_a_rank_finds_its_place_in_slurms_environment(slurm):
    done = run(slurm, "leave done", words=("cluster.launcher=srun",))
    assert done.words[:3] == ["-m", "nvlm_train", "train"] and not done.agent
    found = {name: done.environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    assert found == {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "16", "MASTER_PORT": "20077"}
    assert done.environment["MASTER_ADDR"] == done.environment["NVLM_HEAD"] != ""
    assert list(Path(done.environment["NVLM_LOGS"]).iterdir()) == [], "rank 0 prints into the job's log"


def test_the_first_stage_submits_the_second_once(slurm):
    first, second = jobs_of(slurm, "cluster.chain=true")
    script = render(first, "local_slurm")
    done = slurm.run(script, RANK_DOES="leave done")
    assert done.called("sbatch") == [f"sbatch --parsable {second.script}"] and "next stage is job 4321" in done.told
    assert Path(f"{second.script}.job").read_text(encoding="ascii") == "4321\n"
    again = slurm.run(script, RANK_DOES="leave done")
    assert (again.code, again.called("sbatch")) == (0, []) and "job 4321 already" in again.told
    Path(f"{second.script}.job").unlink()
    refused = slurm.run(script, RANK_DOES="leave done", SBATCH_STATUS="1")
    assert refused.code == 5 and f"by hand: sbatch {second.script}" in refused.told
    assert not Path(f"{second.script}.job").exists()
    assert slurm.run(script, RANK_DOES="leave requeue").called("sbatch") == []


def test_the_tasks_of_a_sweep_have_words_folders_and_requeues_of_their_own(slurm):
    array = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "1"}
    (job,) = jobs_of(slurm, "sweep.train.lr=1e-3,2e-3")
    done = slurm.run(render(job, "local_slurm"), (signal.SIGUSR1,), RANK_DOES="wait requeue", **array)
    run_dir = slurm.folder.parent / "runs" / "nvlm_d_tiny" / "1-train.lr=0.002"
    assert done.words[-2:] == ["train.lr=0.002", f"run.dir={run_dir}"]
    assert done.called("scontrol") == ["scontrol requeue 70_1"] and done.called("scancel") == ["scancel --signal=TERM 70_1.0"]
    assert (run_dir / "next").read_text(encoding="ascii") == "requeue\n"


def test_a_run_directory_that_cannot_be_made_ends_the_job_at_once(slurm):
    (slurm.folder.parent / "runs").write_text("a file", encoding="ascii")
    done = run(slurm, "leave done")
    assert done.code == 6 and "must lie on storage that all nodes share" in done.told and not done.called("srun")


@pytest.mark.parametrize("words", [
    (), ("cluster.launcher=srun",), ("cluster.chain=true",), ("sweep.train.seed=1,2",),
    ("cluster.container.runtime=pyxis", "cluster.container.image=/shared/nvlm.sqsh"),
    ("cluster.container.runtime=apptainer", "cluster.container.image=/shared/nvlm.sif", "cluster.requeue=false"),
])
def test_every_form_is_correct_shell(slurm, words):
    for script in scripts_of(slurm, *words):
        checked = subprocess.run(["bash", "-n"], check=False, input=script, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")
        assert max(map(len, script.replace(str(slurm.folder.parent), "/shared").splitlines())) < 160


def evaluation_of(slurm: FakeSlurm, *words: str) -> tuple[Job, str]:
    asked, rest = take_submission([*TINY, f"cluster.python={slurm.python}", "cluster.evaluate_nodes=1", "evaluate.benchmarks=[demo_sums]",
                                   "evaluate.at_checkpoints=false", *words])
    cluster = compose_cluster(asked.cluster, asked.changes)
    runs = compose(rest)
    [first] = plan_jobs(asked, cluster, rest, runs, slurm.folder.parent)
    job = evaluation_job(cluster, runs, first.run_dir, first.workdir)
    job.run_dir.mkdir(parents=True)
    (job.run_dir / "config.yaml").write_text("{}")
    return job, render(job, "local_slurm")


@pytest.mark.parametrize(("status", "code"), [(0, 0), (2, 2)])
def test_an_evaluation_ends_as_its_ranks_end(slurm, status, code):
    job, script = evaluation_of(slurm)
    slurm.answer("rank", "asked", status=status)
    done = slurm.run(script)
    assert done.code == code, done.told
    assert done.called("rank") == [f"rank -m nvlm_train eval-checkpoints --follow {job.run_dir}"] and not done.called("scontrol")


@pytest.mark.parametrize(("words", "requeued"), [((), ["scontrol requeue 77"]), (("cluster.requeue=false",), [])])
def test_an_evaluation_near_its_time_limit_is_requeued(slurm, words, requeued):
    _, script = evaluation_of(slurm, *words)
    slurm.python.write_text('#!/usr/bin/env bash\necho $$ > "$FAKES/pid"\nexec sleep 30\n', encoding="utf-8")
    done = slurm.run(script, (signal.SIGUSR1,))
    assert done.called("scancel") == ["scancel --signal=TERM 77.0"] and done.called("scontrol") == requeued, done.told
    assert (done.code == 0) == bool(requeued)
