"""Two jobs never train in one directory, also where the file system has no locks; and what a dead one leaves is taken over."""

import os
import time

import pytest
from filelock import FileLock

from nvlm_train.training import owner
from nvlm_train.training.owner import OWNER, InUse, Owner
from nvlm_train.training.run_dir import claim

ELSEWHERE = "process 7 on far-node, job 12.0, since 2026-01-01 10:00:00; abc 1"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A line that changes is seen at once; how long one that does not is watched says each test. No test ends the process it runs in."""
    monkeypatch.setattr(owner, "BEAT_S", 0.2)
    monkeypatch.setattr(owner, "WATCHED_S", 60)
    ended = []
    monkeypatch.setattr(owner, "_end_process", ended.append)
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    yield
    assert ended == []


@pytest.fixture
def without_locks(monkeypatch):
    def acquire(self, timeout=None):
        raise NotImplementedError("this file system has no locks")
    monkeypatch.setattr(FileLock, "acquire", acquire)


def test_without_locks_a_living_owner_is_seen_by_its_line(tmp_path, without_locks, caplog):
    held = claim(tmp_path, "auto")
    with pytest.raises(InUse, match=f"in use by process {os.getpid()} on .*, since .*: wait for it"):
        claim(tmp_path, "auto")
    held.release()
    assert not (tmp_path / OWNER).exists()
    claim(tmp_path, "auto").release()
    assert "lock.owner alone tells jobs apart" in caplog.text


def test_a_line_that_stands_still_is_stale(tmp_path, without_locks, monkeypatch):
    monkeypatch.setattr(owner, "WATCHED_S", 0.6)
    (tmp_path / OWNER).write_text(ELSEWHERE)
    began = time.monotonic()
    claim(tmp_path, "auto").release()
    assert time.monotonic() - began >= 0.6      # watched, not assumed


def test_a_lock_that_only_this_node_knows_does_not_hide_an_owner_elsewhere(tmp_path):
    far = Owner(tmp_path)
    far._head = ELSEWHERE.partition(";")[0]
    far.take(locked=True)
    with pytest.raises(InUse, match="process 7 on far-node, job 12.0"):
        claim(tmp_path, "auto")
    far.release()


def test_what_a_killed_process_of_this_host_or_an_earlier_start_of_this_job_left_is_taken_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "_changes", lambda *_: pytest.fail("watched"))
    here = Owner(tmp_path)
    here._write()
    claim(tmp_path, "auto").release()
    (tmp_path / OWNER).write_text(ELSEWHERE)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    claim(tmp_path, "auto").release()


@pytest.mark.parametrize(("job", "start"), [("12", "0"), ("13", "1")])
def test_another_step_of_this_job_and_another_job_are_watched(tmp_path, monkeypatch, job, start):
    (tmp_path / OWNER).write_text(ELSEWHERE)
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", start)
    seen = []
    monkeypatch.setattr(owner, "_changes", lambda path, line: seen.append(line))
    claim(tmp_path, "auto").release()
    assert seen == [ELSEWHERE]


def test_an_owner_that_was_silent_and_replaced_ends(tmp_path):
    """As after SIGSTOP, when another job has rightly taken the directory over."""
    lost = []
    silent = Owner(tmp_path, lost.append)
    silent.take(locked=True)
    (tmp_path / OWNER).write_text(ELSEWHERE)
    until = time.monotonic() + 10
    while not lost and time.monotonic() < until:
        time.sleep(0.05)
    assert "now belongs to process 7 on far-node" in lost[0]
    silent.release()
    assert (tmp_path / OWNER).read_text() == ELSEWHERE
