"""status.json and `next`: what a launcher is told about a job, however it ends, and when a run that gets nowhere is stopped."""

import os

import pytest

from nvlm_train import cli
from nvlm_train.errors import ConfigError, TrainingError
from nvlm_train.training.preemption import Preempted
from nvlm_train.training.run_dir import claim
from nvlm_train.training.status import STATUS, Status, StatusFile, Stuck, read_next, read_status, refuse_restart

SLURM = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT", "RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def under_slurm(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)


def job(run_dir, step=0, saved=None, error=None, max_restarts=2):
    """A job that starts from `step` of pretrain, saves and ends."""
    with StatusFile(run_dir, max_restarts) as status:
        status.begin("pretrain", step)
        if saved is not None:
            status.saved("pretrain", saved)
        if error is not None:
            raise error


def test_a_running_job_says_where_it_stands_and_takes_back_the_word_of_the_one_before(tmp_path, under_slurm):
    (tmp_path / "next").write_text("requeue\n")
    with StatusFile(tmp_path, 2) as status:
        status.begin("pretrain", 4)
        assert read_next(tmp_path) is None
        status.saved("pretrain", 6, 2.5)
        now = read_status(tmp_path)
    assert now == Status("running", "pretrain", 6, "pretrain", 4, save_s=2.5, job="17", time=now.time)
    assert now.time.endswith("Z")


@pytest.mark.parametrize(("error", "state", "code", "word", "said"), [
    (None, "finished", 0, "done", None),
    (Preempted("stopped"), "preempted", 75, "requeue", "stopped"),
    (ConfigError(["a is wrong", "b is too"]), "failed", 2, "stop", "a is wrong"),
    (KeyboardInterrupt(), "failed", 130, "stop", "KeyboardInterrupt"),
    (RuntimeError("Connection closed by peer\nmore"), "failed", 1, None, "Connection closed by peer"),
], ids=["finished", "preempted", "configuration", "Ctrl-C", "crash"])
def test_how_a_job_ended(tmp_path, error, state, code, word, said):
    if error is None:
        job(tmp_path, saved=5)
    else:
        with pytest.raises(type(error)):
            job(tmp_path, saved=5, error=error)
    now = read_status(tmp_path)
    assert (now.state, now.exit_code, now.step, read_next(tmp_path)) == (state, code, 5, word)
    assert now.error == said


def test_restarts_from_the_same_step_are_counted_and_stopped(tmp_path, monkeypatch):
    """One start and two restarts are allowed, whatever ended them; the third restart is refused."""
    with pytest.raises(RuntimeError):
        job(tmp_path, error=RuntimeError("boom"))
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    for count in (1, 2):
        with pytest.raises(RuntimeError):
            job(tmp_path, saved=3, error=RuntimeError("disk is gone"))      # a save that was under way and never published
        assert read_status(tmp_path).restarts_without_progress == count
    with pytest.raises(Stuck, match=r"started again 3 times in a row from step 0 of pretrain .* run\.max_restarts=2 .*disk is gone"):
        job(tmp_path)
    now = read_status(tmp_path)
    assert (now.state, now.restarts_without_progress, read_next(tmp_path)) == ("stuck", 3, "stop")

    monkeypatch.delenv("SLURM_RESTART_COUNT")
    job(tmp_path, saved=3)
    assert read_status(tmp_path).restarts_without_progress == 0, "a person has looked, and started it by hand"


def test_progress_begins_the_count_anew(tmp_path, under_slurm):
    for step in (0, 0, 0, 2, 2, 2, 4):
        with pytest.raises(RuntimeError):
            job(tmp_path, step=step, error=RuntimeError("boom"))
    assert read_status(tmp_path).restarts_without_progress == 0


def test_restarts_by_torchrun_count_too(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError):
        job(tmp_path, error=RuntimeError("boom"), max_restarts=0)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(Stuck, match="started again once from step 0"):
        job(tmp_path, max_restarts=0)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"x"', b"{}", b'{"state": "running", "more": 1}'])
def test_a_status_that_cannot_be_read_stops_nothing(tmp_path, content, under_slurm):
    (tmp_path / STATUS).write_bytes(content)
    job(tmp_path)
    assert (read_status(tmp_path).state, read_next(tmp_path)) == ("finished", "done")


def test_a_full_disk_does_not_hide_the_error(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    with pytest.raises(TrainingError, match="the real reason"), StatusFile(tmp_path, 2) as status:
        status.begin("pretrain", 0)
        monkeypatch.setattr("nvlm_train.training.status.write_atomically", full)
        raise TrainingError("the real reason")


def test_only_a_batch_job_is_told_not_to_start_again(tmp_path, monkeypatch):
    folder = tmp_path / "new"
    refuse_restart(folder)
    assert not folder.exists()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("RANK", "1")
    refuse_restart(folder)
    assert not folder.exists()
    monkeypatch.setenv("RANK", "0")
    refuse_restart(folder)
    assert read_next(folder) == "stop"


def test_a_wrong_configuration_is_not_started_again(tmp_path, under_slurm, capsys):
    assert cli.main(["train", "recipe=nvlm_d_tiny", f"run.dir={tmp_path / 'run'}", "train.stepz=3"]) == 2
    assert read_next(tmp_path / "run") == "stop"
    assert cli.main(["train", "recipe=nvlm_d_tiny", f"run.dir={tmp_path / 'other'}", "layout.tensor=2"]) == 2
    assert read_next(tmp_path / "other") == "stop"
    assert "cannot be split into groups of 2" in capsys.readouterr().err


def test_a_second_job_on_a_run_directory_is_told_to_stop_and_the_first_goes_on(tmp_path, under_slurm, capsys):
    lock = claim(tmp_path, "auto")
    with StatusFile(tmp_path, 2) as status:
        status.begin("pretrain", 0)
        assert cli.main(["train", "recipe=nvlm_d_tiny", f"run.dir={tmp_path}"]) == 1
        assert f"in use by process {os.getpid()}" in capsys.readouterr().err
        assert (read_next(tmp_path), read_status(tmp_path).state) == ("stop", "running")
        status.saved("pretrain", 3)
        assert read_next(tmp_path) is None
    lock.release()
    assert read_next(tmp_path) == "done"


def test_a_directory_with_nothing_but_a_word_holds_no_run(tmp_path):
    (tmp_path / "next").write_text("stop\n")
    claim(tmp_path, "never").release()
