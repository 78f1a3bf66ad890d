"""A hang ends the job and names who held it up; a long step, a stopped and continued process, and a slow save do not."""

import json
import subprocess
import sys
import time

import psutil
import pytest
import torch.distributed as dist

from nvlm_train.health.heart import PATIENCE, Heart
from nvlm_train.health.verdict import Sign, decide
from nvlm_train.health.watch import HUNG, Watch, end_if_here
from nvlm_train.health.word import Failure, failure_of, from_peers, leave_word, word
from tests.health.rank_threads import facts

# The stand-in for the end of a process is the end of its watching thread.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

RANKS = [facts(rank) for rank in range(4)]
AT = Sign(count=7, step=5, place="after step 5 of sft, in train_step", waits=True, line="engine/megatron.py:155 in _reduce")


def signs(**changes) -> dict[int, Sign]:
    return {0: AT, 1: AT, 2: Sign(**{**AT.__dict__, **changes}), 3: AT}


def test_a_silent_rank_is_guilty():
    verdict = decide(RANKS, {rank: sign for rank, sign in signs().items() if rank != 2} | {2: AT}, {2: 31.0})
    assert verdict.guilty == (2,)
    assert "rank 2 (node-b), process 1002, has not been heard of for 31 s" in verdict.why and AT.line in verdict.why


def test_the_rank_that_is_not_in_the_collective_is_guilty():
    verdict = decide(RANKS, signs(waits=False, place="after step 5 of sft, in next_batch", line="data/loader.py:90 in __next__"), {})
    assert verdict.guilty == (2,)
    assert verdict.why == ("rank 2 (node-b) did not come to the collective in which the others wait: after step 5 of sft, in next_batch, "
                           "data/loader.py:90 in __next__")


def test_else_the_rank_that_is_behind_is_guilty():
    assert decide(RANKS, signs(count=6), {}).guilty == (2,)
    assert decide(RANKS, {**signs(count=6), 3: Sign(**{**AT.__dict__, "count": 6})}, {}).guilty == (2, 3)


def test_if_all_stand_alike_nobody_is_blamed():
    assert decide(RANKS, signs(), {}).guilty == () and "network" in decide(RANKS, signs(), {}).why


def test_long_work_and_slow_steps_are_no_hang():
    now = [0.0]
    heart = Heart(lambda: now[0])
    assert heart.limit(10) == 10 * PATIENCE            # setting up
    heart.enter("sft", 0, "train_step")
    assert heart.limit(10) == 10 * PATIENCE            # the first step compiles
    now[0] = 30.0
    heart.enter("sft", 1, "next_batch")
    assert heart.limit(10) == 10
    heart.enter("sft", 1, "train_step")
    now[0] = 37.0
    heart.enter("sft", 2, "Checkpoints")
    assert heart.limit(10) == 10 * PATIENCE
    heart.enter("sft", 2, "train_step")
    assert heart.limit(1) == 28.0                      # four times the slowest step, 7 s
    heart.enter("pretrain", 0, "train_step")
    assert heart.limit(10) == 10 * PATIENCE            # another stage, another first step


def test_a_beat_costs_microseconds():
    heart, count = Heart(), 20_000
    took = []
    for _ in range(5):
        began = time.perf_counter()
        for step in range(count):
            heart.enter("sft", step, "train_step")
        took.append((time.perf_counter() - began) / count)
    print(f"a beat: {min(took) * 1e6:.2f} us")
    assert min(took) < 20e-6      # a step has about ten of them and takes milliseconds at the very least


def watched(hearts: list[Heart | None], tmp_path, hang_s: float):
    """Watches over the hearts, as threads of this process. Returns (ended: rank -> status, told: [(why, status)], watches)."""
    store, ended, told = dist.HashStore(), {}, []

    def end(rank: int):
        def end_process(status: int) -> None:
            ended.setdefault(rank, status)
            raise SystemExit    # ends the watching thread, where the real one ends its process
        return end_process

    ranks = [facts(rank, host=f"node-{rank}", pid=2**22 + rank) for rank in range(len(hearts))]
    watches = [Watch(store, ranks, rank, heart, hang_s, tmp_path, lambda why, status: told.append((why, status)), end(rank))
               for rank, heart in enumerate(hearts) if heart is not None]
    return store, ended, told, watches


def wait_until(true, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def ready() -> Heart:
    """A heart past its first step."""
    heart = Heart()
    for step in (0, 1):
        heart.enter("sft", step, "train_step")
        heart.enter("sft", step + 1, "next_batch")
    heart.slowest = 0.0
    return heart


def test_a_hang_is_ended_on_every_rank_and_told_once(tmp_path, capfd):
    behind, others = ready(), [ready(), ready()]
    for heart in others:
        heart.enter("sft", 2, "train_step")
    _, ended, told, watches = watched([others[0], behind, others[1]], tmp_path / "stacks", hang_s=0.5)
    for watch in watches:
        watch.__enter__()
    wait_until(lambda: len(ended) == 3)
    for watch in watches:
        watch.__exit__()
    assert ended == {0: HUNG, 1: HUNG, 2: HUNG}
    assert len(told) == 1 and told[0][1] == HUNG and "rank 1 (node-1) is behind the others" in told[0][0]
    said = capfd.readouterr().err
    assert said.count("no rank has gone on") == 1 and "run.hang_s=0.5" in said
    stacks = sorted((tmp_path / "stacks").iterdir())
    assert [path.name for path in stacks] == [f"rank-{rank:05d}.txt" for rank in range(3)]
    text = stacks[1].read_text()
    assert text.startswith("rank 1 (node-1), after step 2 of sft, in next_batch") and "thread MainThread" in text and "wait_until" in text


def test_a_rank_without_signs_is_the_one_named(tmp_path):
    _, ended, told, watches = watched([ready(), None], tmp_path, hang_s=0.4)
    with watches[0]:
        wait_until(lambda: len(ended) == 1)
    assert ended == {0: HUNG} and "rank 1 (node-1), process" in told[0][0] and "has not been heard of" in told[0][0]


def test_a_job_that_goes_on_is_left_alone(tmp_path):
    heart = ready()
    _, ended, told, watches = watched([heart], tmp_path, hang_s=0.6)
    with watches[0]:
        for step in range(20):
            heart.enter("sft", 2 + step, "train_step")
            time.sleep(0.1)
    assert not ended and not told


def test_a_gap_of_the_watch_itself_is_no_hang(tmp_path):
    """As after SIGSTOP and SIGCONT, or Slurm's suspend: the watch did not run either."""
    heart = ready()
    _, ended, _, (watch,) = watched([heart], tmp_path, hang_s=8.0)
    watch._tick(0.0)
    for _ in range(3):
        watch._tick(min(3600.0, 2 * watch._every))      # as _run counts a gap of an hour
    assert watch._idle == 6 * watch._every and not ended


def test_a_rank_that_does_not_notice_anothers_failure_ends(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("nvlm_train.health.watch._LEAVE_S", 0.3)
    store, ended, _, watches = watched([ready()], tmp_path, hang_s=0.0)
    watches[0]._every = 0.1
    leave_word(store, Failure(1, "node-1", "after step 2 of sft, in train_step", "ValueError: boom"))
    with watches[0]:
        wait_until(lambda: ended)
    assert ended == {0: 1}
    assert "rank 1 (node-1) failed after step 2 of sft, in train_step: ValueError: boom" in capfd.readouterr().err


def test_the_first_word_stands():
    store = dist.HashStore()
    first = leave_word(store, failure_of(1, "setting up", ValueError("boom\nmore")))
    assert leave_word(store, failure_of(0, "setting up", RuntimeError("late"))) == first == word(store)
    assert first.error == "ValueError: boom"
    assert failure_of(2, "", SystemExit(0)).error == "it left early with code 0"
    assert json.loads(store.get("failure"))["rank"] == 1


@pytest.mark.parametrize(("error", "peers"), [
    (RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"), True),
    (dist.DistBackendError("NCCL error in: ..."), True),
    (RuntimeError("shape mismatch"), False), (ValueError("nccl"), False), (MemoryError(), False),
])
def test_noise_of_peers_is_told_from_causes(error, peers):
    assert from_peers(error) is peers


def test_only_the_very_process_is_ended():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        born = psutil.Process(process.pid).create_time()
        assert not end_if_here(facts(0, pid=process.pid, born=born), "node-x")             # on another host
        assert not end_if_here(facts(0, pid=process.pid, born=born - 100), "node-a")       # a later process of that number
        assert process.poll() is None
        assert end_if_here(facts(0, pid=process.pid, born=born), "node-a")
        assert process.wait(10) == -9
    assert not end_if_here(facts(0, pid=process.pid, born=born), "node-a")
