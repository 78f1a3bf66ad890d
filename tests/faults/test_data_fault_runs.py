"""Training on a folder full of faults: real processes of the real command. What is skipped is skipped again after a kill, on any number
of ranks, and too much of it stops the run, wherever it was resumed."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from data_prep.shards import index_folder
from nvlm_train.training.audit import audit
from tests.faults import jobs
from tests.faults.broken_data import FAULTY, faulty_shard
from tests.faults.jobs import Job, rows

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")]

STEPS, BATCH, GOOD = 12, 10, 28     # 40 samples: three epochs
SETTINGS = ["recipe=nvlm_d_tiny", "stage=sft", f"train.steps={STEPS}", "train.warmup_steps=2", f"train.global_batch={BATCH}",
            "run.save_every=3", "data.validation={}", "data.workers=3"]
TOLERANT, STRICT = "data.max_refused=0.5", "data.max_refused=0.2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    shard = faulty_shard(tmp_path_factory.mktemp("data") / "faulty" / "a.tar", GOOD)
    assert index_folder(shard.parent)["samples"] == GOOD + len(FAULTY) == STEPS * BATCH // 3
    return shard.parent


def start(run_dir: Path, folder: Path, *settings: str, ranks: int = 1) -> Job:
    return jobs.start(run_dir, *SETTINGS, f"data.blend={{x:{{path:{folder}}}}}", *settings, ranks=ranks)


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory) -> tuple[Path, str]:
    """(run directory, what it said)."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    job = start(run_dir, folder, TOLERANT)
    job.wait()
    return run_dir, job.log.read_text()


@pytest.fixture(scope="module")
def stopped(folder, tmp_path_factory) -> tuple[Path, str]:
    """(run directory, what it said last). Killed at step 5 on one rank; goes on from step 3 on two, which skip no more than a fifth."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    jobs.kill_after(start(run_dir, folder, TOLERANT), run_dir, "sft", 5)
    job = start(run_dir, folder, STRICT, ranks=2)
    assert job.process.wait(240) != 0
    return run_dir, job.log.read_text()


def refused(run_dir: Path) -> list[dict[str, str]]:
    """Of each step: id -> reason."""
    return [{row["ids"][int(n) - row["first_slot"]]: reason for n, reason in row["refused"].items()} for row in rows(run_dir, "samples.jsonl")]


def extra(run_dir: Path, step: int) -> dict:
    """What a checkpoint knows of refused samples."""
    manifest = run_dir / "checkpoints" / "sft" / f"step-{step:08d}" / "manifest.json"
    return json.loads(manifest.read_text())["extra"]["refused"]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_each_fault_is_skipped_once_an_epoch_counted_and_logged(undisturbed, folder):
    run_dir, said = undisturbed
    reasons = {f"x/{key}": reason for key, (_, reason) in FAULTY.items()}
    skipped = refused(run_dir)
    for epoch in range(3):
        slots = Counter(key for step in skipped[epoch * 4:epoch * 4 + 4] for key in step)
        assert slots == dict.fromkeys(reasons, 1)
    assert all(step.items() <= reasons.items() for step in skipped)
    assert [(row["samples"], row["refused"]) for row in rows(run_dir)] == [(BATCH - len(step), len(step)) for step in skipped]
    for key, (_, reason) in FAULTY.items():
        assert said.count(f" stays empty: {key} of {folder}/a.tar, {reason}: ") == 3
    use, = audit(run_dir)[0].uses.values()
    assert (use.slots, use.least, use.most, use.refused) == (STEPS * BATCH, 3, 3, {reason: 3 * n for reason, n in Counter(reasons.values()).items()})


@pytest.mark.full
def test_too_many_over_all_ranks_stop_the_run_where_it_would_have_stopped_without_the_kill(undisturbed, stopped):
    """Two ranks share the slots: had each counted its own, or only those since the kill, neither would ever see a hundred."""
    run_dir, said = stopped
    expected = sum(map(len, refused(undisturbed[0])[:10]))
    assert f"{expected} of 100 samples were refused ({expected}.0%), more than data.max_refused=20.0% allows" in said
    assert len(refused(run_dir)) == 10, "the step that was one too many is recorded"
    assert extra(run_dir, 9)["slots"] == 90


@pytest.mark.full
def test_the_same_samples_are_skipped_after_kills_on_any_ranks(undisturbed, stopped, folder, tmp_path):
    """One rank up to step 3, two up to step 9, then one again."""
    run_dir = shutil.copytree(stopped[0], tmp_path / "run")
    start(run_dir, folder, TOLERANT).wait()
    skipped = refused(run_dir)
    assert any(skipped[:3]) and any(skipped[3:9]) and any(skipped[9:]), "something was skipped in each part"
    assert sha256(run_dir / "samples.jsonl") == sha256(undisturbed[0] / "samples.jsonl")
    assert [(one.steps, one.wrong) for one in audit(run_dir)] == [(STEPS, 0)]
    assert extra(run_dir, STEPS) == extra(undisturbed[0], STEPS)
    assert extra(run_dir, STEPS)["reasons"] == Counter(reason for step in skipped for reason in step.values())


def test_an_empty_shard_stops_the_run_before_its_first_step(folder, tmp_path):
    data = shutil.copytree(folder, tmp_path / "data")
    size = (data / "a.tar").stat().st_size
    (data / "a.tar").write_bytes(b"")
    job = start(tmp_path / "run", data)
    assert job.process.wait(240) == 1
    said = job.log.read_text()
    assert f"shard {data}/a.tar is truncated: 0 bytes, its index says {size:,}" in said and "Traceback" not in said
    assert rows(tmp_path / "run") == rows(tmp_path / "run", "samples.jsonl") == []
