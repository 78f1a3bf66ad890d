"""`nvlm submit` as a person meets it: what is refused before the queue is asked, what Slurm is asked, and what is told."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

import nvlm_train
from nvlm_train import cli

ROOT = Path(nvlm_train.__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "submit"
TINY = ("submit", "recipe=nvlm_d_tiny", "cluster=local_slurm", "nodes=2", "cluster.python=python")
SINFO = "main*|2|1-00:00:00\nbig|64|infinite\n"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def slurm(here, monkeypatch) -> FakeSlurm:
    """sinfo, squeue and sbatch on PATH: two partitions, and no job known."""
    fakes = FakeSlurm(here / "fakes")
    fakes.answer("sinfo", SINFO)
    fakes.answer("squeue", "", status=1)
    for name, value in fakes.environment().items():
        monkeypatch.setenv(name, value)
    return fakes


def refused(capsys, *words: str, code: int = 2) -> str:
    assert cli.main(list(words)) == code
    return capsys.readouterr().err


def test_a_job_is_written_shown_and_submitted(here, slurm, capsys):
    assert cli.main([*TINY, "run.save_every=5"]) == 0
    told = capsys.readouterr()
    script = here / "runs" / "nvlm_d_tiny" / "slurm" / "nvlm_d_tiny.sbatch"
    text = script.read_text(encoding="utf-8")
    assert text in told.out and "submitted: job 4321, nvlm_d_tiny, 2 nodes, 4 ranks" in told.out and "scancel 4321" in told.out
    assert slurm.calls()[-1] == f"sbatch --parsable {script}"
    assert f"#SBATCH --chdir={here}\n" in text and f"run_dir={here}/runs/nvlm_d_tiny\n" in text
    assert told.err == (f"# {script}:\nnote: run.dir=runs/nvlm_d_tiny is taken as {here}/runs/nvlm_d_tiny: every node must see that "
                        "folder\n")


def test_dry_run_asks_no_slurm_and_writes_nothing(here, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main([*TINY, "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "#SBATCH --nodes=2" in told.out and "run.save_every=0" in told.err and list(here.iterdir()) == []


@pytest.mark.parametrize(("words", "sentences"), [
    (("cluster=dgx_h10", "nodes=0"), ["nodes=0: expected a whole number of at least 1"]),
    (("cluster=dgx_h10", "train.stps=3"), ["did you mean dgx_h100?", "did you mean train.steps?"]),
    (("cluster.tme=30",), ["cluster.tme: unknown key; did you mean time?"]),
    (("nodes=3", "layout.tensor=2", "layout.pipeline=2"),
     ["nodes=3 x 2 ranks of a node: 6 processes cannot be split into groups of 4"]),
    (("run.resume=never",), ["a requeued job could not go on"]),
    (("cluster.chain=true", "stage=sft"), ["stage=sft is only one: add stage=all"]),
    (("cluster.chain=true", "sweep.train.seed=1,2"), ["one or the other"]),
    (("sweep.train.seed=",), ["write the setting and its values"]),
    (("sweep.train.lr=1e-2,1e-9",), ["sweep, train.lr=1e-09: train.min_lr"]),
    (("sweep.run.dir=a,b",), ["a folder of its own"]),
    (("cluster.container.runtime=pyxis", "cluster.container.image=/i.sqsh", "run.dir=/elsewhere/run"),
     ["run.dir=/elsewhere/run is in none of the folders that the container may write under the same name"]),
    (("cluster.container.runtime=pyxis", "cluster.container.image=/i.sqsh", "cluster.container.mounts=[/r:/r:ro]",
      "run.dir=/r/run", "model.language.weights=/w/x", "init=/w/start", "data.validation.shapes.path=/w/shapes"),
     ["run.dir=/r/run is in none", "model.language.weights=/w/x is in none of the folders that the container sees",
      "init=/w/start is in none", "data.validation.shapes.path=/w/shapes is in none"]),
])
def test_what_cannot_work_never_reaches_the_queue(here, slurm, capsys, words, sentences):
    told = refused(capsys, *TINY, *words)
    assert all(sentence in told for sentence in sentences), told
    assert slurm.calls() == [] and not (here / "runs").exists()


def test_no_cluster_named(capsys):
    assert "no cluster given: add cluster=NAME" in refused(capsys, "submit", "recipe=nvlm_d_tiny")


@pytest.mark.parametrize(("words", "sentence"), [
    (("cluster.partition=bg",), "this Slurm has no such partition; did you mean big? (sinfo shows main, big)"),
    (("nodes=3",), "nodes=3, but partition main has 2"),
    (("cluster.time=1-00:00:01",), "is 86401 s, but partition main allows 86400 s"),
])
def test_what_this_slurm_does_not_have(here, slurm, capsys, words, sentence):
    assert sentence in refused(capsys, *TINY, *words, code=1)
    assert not [call for call in slurm.calls() if call.startswith("sbatch")]


def test_one_partition_of_several_that_suits_is_enough(slurm, capsys):
    assert cli.main([*TINY, "nodes=3", "cluster.partition=main,big"]) == 0


def test_no_slurm_here(here, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "sbatch is not here: nvlm submit runs on a login node" in refused(capsys, *TINY, code=1)


def test_what_sbatch_says_is_handed_on(slurm, capsys):
    slurm.answer("sbatch", "", "sbatch: error: invalid account", status=1)
    assert "sbatch: error: invalid account" in refused(capsys, *TINY, code=1)


def test_two_jobs_on_one_run_directory(here, slurm, capsys):
    assert cli.main(list(TINY)) == 0
    slurm.answer("squeue", "RUNNING")
    told = refused(capsys, *TINY, code=1)
    assert f"job 4321 (running) already trains in {here}/runs/nvlm_d_tiny" in told
    slurm.answer("squeue", "", status=1)    # ended, and forgotten
    assert cli.main(list(TINY)) == 0


ASKED = ("cluster.evaluate_nodes=1", "evaluate.benchmarks=[demo_sums]", "evaluate.at_checkpoints=false")


def test_a_second_job_asks_the_checkpoints(here, slurm, capsys):
    assert cli.main([*TINY, *ASKED]) == 0
    told = capsys.readouterr().out
    folder = here / "runs" / "nvlm_d_tiny" / "slurm"
    assert [call for call in slurm.calls() if call.startswith("sbatch")] == [
        f"sbatch --parsable {folder}/nvlm_d_tiny.sbatch", f"sbatch --parsable {folder}/nvlm_d_tiny-evaluate.sbatch"]
    assert "submitted: job 4321, nvlm_d_tiny-evaluate, 1 nodes, 2 ranks" in told
    script = (folder / "nvlm_d_tiny-evaluate.sbatch").read_text(encoding="utf-8")
    assert "#SBATCH --nodes=1\n" in script and "#SBATCH --ntasks-per-node=2\n" in script


@pytest.mark.parametrize(("words", "sentence"), [
    (("cluster.evaluate_nodes=1",), "cluster.evaluate_nodes=1, but there is nothing to ask: name benchmarks in evaluate.benchmarks"),
    ((*ASKED[:2],), "but the training asks its checkpoints itself: add evaluate.at_checkpoints=false"),
    ((*ASKED, "sweep.train.seed=1,2"), "cluster.evaluate_nodes and sweep.…: one or the other"),
    ((*ASKED, "layout.tensor=2", "layout.pipeline=2"), "cluster.evaluate_nodes=1 x 2 ranks of a node: 2 processes cannot be split into groups of 4"),
    (("cluster.evaluate_nodes=-1",), "cluster.evaluate_nodes=-1 must be at least 0"),
])
def test_a_second_job_that_cannot_work(here, slurm, capsys, words, sentence):
    assert sentence in refused(capsys, *TINY, *words)


@pytest.mark.parametrize(("name", "words"), [
    ("nvlm_d_72b-dgx_h100", ("recipe=nvlm_d_72b", "stage=all", "cluster=dgx_h100", "nodes=16")),
    ("nvlm_d_72b-chain-pyxis", (
        "recipe=nvlm_d_72b", "stage=all", "cluster=dgx_h100", "nodes=16", "cluster.chain=true", "cluster.partition=batch",
        "cluster.account=vision", "cluster.container.runtime=pyxis", "cluster.container.image=/shared/nvlm-train.sqsh",
        "cluster.container.mounts=[/shared]", "cluster.env.NCCL_IB_HCA=mlx5", "run.dir=/shared/runs/first",
        "model.language.weights=/shared/weights/qwen2-72b", "model.vision.weights=/shared/weights/internvit-6b")),
    ("nvlm_d_2b-sweep-srun-apptainer", (
        "recipe=nvlm_d_2b", "stage=sft", "cluster=slurm", "nodes=2", "cluster.launcher=srun", "sweep.train.lr=1e-5,2e-5",
        "sweep.train.seed=1,2", "cluster.sweep_at_once=2", "cluster.container.runtime=apptainer",
        "cluster.container.image=/shared/nvlm-train.sif", "cluster.container.mounts=[/shared:/shared:ro]",
        "cluster.setup=[module load apptainer]")),
    ("nvlm_d_8b-evaluate", (
        "recipe=nvlm_d_8b", "stage=sft", "cluster=slurm", "nodes=4", "cluster.evaluate_nodes=1", "cluster.gpus_per_node=8",
        "evaluate.benchmarks=[gsm8k]", "evaluate.data.gsm8k=/shared/gsm8k", "evaluate.at_checkpoints=false", "init=/shared/pretrained")),
])
def test_golden_batch_scripts(name, words, monkeypatch, capsys):
    """Read them: an administrator would have to. UPDATE_GOLDEN=1 writes them."""
    monkeypatch.setattr(Path, "cwd", lambda: Path("/shared/nvlm"))      # where lines are broken depends on how long it is
    for variable in ("NVLM_DATA", "NVLM_WEIGHTS"):
        monkeypatch.setenv(variable, f"/shared/{variable.lower()}")
    assert cli.main(["submit", *words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    file = GOLDEN / f"{name}.sbatch"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(told, encoding="utf-8")
    assert told == file.read_text(encoding="utf-8"), "UPDATE_GOLDEN=1 if that is meant"
    assert subprocess.run(["bash", "-n"], check=False, input=told, text=True).returncode == 0


def test_submitting_loads_neither_torch_nor_megatron(here):
    """Nor does it take long: 1.5 s of computing, so that a busy machine does not decide."""
    code = ("import sys; from nvlm_train.cli import main; main(['submit', 'recipe=nvlm_d_72b', 'cluster=dgx_h100', 'nodes=16', "
            "'--dry-run']); assert not {'torch', 'megatron', 'wandb', 'numpy'} & set(sys.modules)")
    before = os.times()
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60, cwd=here,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode == 0, done.stderr
    assert min(spent, time.monotonic() - began) < 1.5
