"""When a followed training is over, and how jobs share its checkpoints."""

import json

import pytest

from nvlm_train.evaluation import checkpoints, following
from nvlm_train.evaluation.checkpoints import Queue
from nvlm_train.evaluation.following import PATIENCE_S, Following
from nvlm_train.training.owner import OWNER, WATCHED_S


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def write(run, **files):
    for name, text in files.items():
        (run / {"owner": OWNER, "next_": "next", "status": "status.json"}[name]).write_text(text)


def test_a_run_with_a_living_owner_goes_on(tmp_path, clock):
    run = Following(tmp_path, clock)
    write(tmp_path, next_="stop")       # of an earlier job
    for count in range(3):
        write(tmp_path, owner=f"process 7 on a; token {count}")
        assert run.trains() and not run.over()
        clock.now += WATCHED_S
    clock.now += 2 * WATCHED_S
    assert not run.trains() and run.over(), "its line has stopped changing, and the word counts"


@pytest.mark.parametrize(("word", "state", "job", "over"), [
    ("done", "finished", None, True), ("stop", "regressed", "7", True), ("requeue", "preempted", "7", False),
    (None, "failed", None, True), (None, "failed", "7", False), (None, "running", None, False),
])
def test_what_a_run_without_a_process_says(tmp_path, clock, word, state, job, over):
    if word:
        write(tmp_path, next_=word + "\n")
    write(tmp_path, status=json.dumps({"state": state, "job": job}))
    run = Following(tmp_path, clock)
    assert run.over() is over
    clock.now += PATIENCE_S + 1
    assert run.over(), "nobody waits for ever"


def test_benchmarks_that_a_living_training_asks_are_left_to_it(tmp_path, clock, monkeypatch):
    run = Following(tmp_path, clock)
    monkeypatch.setattr(following, "runs_from_file", lambda path: [Settings(at_checkpoints=True)])
    assert run.asks_itself() == ()
    write(tmp_path, owner="process 7 on a; token 1")
    assert run.asks_itself() == ("gsm8k",)
    monkeypatch.setattr(following, "runs_from_file", lambda path: [Settings(at_checkpoints=False)])
    assert run.asks_itself() == ()


class Settings:
    def __init__(self, at_checkpoints):
        self.evaluate, self.benchmarks, self.at_checkpoints = self, ("gsm8k",), at_checkpoints


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with three checkpoints, of which one is not whole."""
    for name in ("step-00000002", "step-00000004", "step-00000006", ".partial-step-00000008"):
        (tmp_path / "checkpoints" / "sft" / name).mkdir(parents=True)
    monkeypatch.setattr(checkpoints, "why_incomplete", lambda path: "no manifest" if path.name.endswith("4") else None)
    return tmp_path


def queue(run):
    return Queue(run, ["pretrain", "sft"], {"gsm8k": (0, 512), "mmlu": (0, 8)}, Following(run))


def test_two_jobs_never_ask_the_same_checkpoint(run):
    first, second = queue(run), queue(run)
    one, other = first.take(), second.take()
    assert (one.step, one.names) == (2, ("gsm8k", "mmlu")) and other.step == 6
    assert first.take() is not None, "the first takes its own again: it has no score yet"
    scored(run, 2, "gsm8k", "mmlu")
    assert first.take() is None, "the rest is the other's, or not whole"
    second.done()
    assert first.take().step == 6, "whose job died without a score"
    first.done()
    assert not list(run.rglob("lock"))


def test_only_what_is_missing_is_asked(run):
    scored(run, 2, "gsm8k")
    scored(run, 6, "gsm8k", "mmlu")
    mine = queue(run)
    assert (mine.take().step, mine.take().names) == (2, ("mmlu",))
    scored(run, 2, "mmlu")
    assert mine.take() is None
    mine.done()


@pytest.mark.parametrize("facts", ['{"limit": 10, "max_new_tokens": 512}', '{"limit": 0, "max_new_tokens": 16}', '{"limit": 0, "max', "[]"])
def test_a_score_of_other_questions_is_no_score(run, facts):
    """Of a few questions by hand, say; nor is half a file."""
    scored(run, 2, "gsm8k", "mmlu")
    (run / "benchmarks" / "sft-step-00000002" / "gsm8k.json").write_text(facts)
    mine = queue(run)
    assert (mine.take().step, mine.take().names) == (2, ("gsm8k",))
    mine.done()


def test_a_checkpoint_that_was_passed_over_is_not_taken_again(run):
    mine = queue(run)
    work = mine.take()
    mine.passed[work.path] = "deleted"
    assert mine.take().step == 6
    mine.done()


def scored(run, step, *names):
    for name in names:
        folder = run / "benchmarks" / f"sft-step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps({"limit": 0, "max_new_tokens": {"gsm8k": 512, "mmlu": 8}[name]}))
