"""Differences between two answers to the same questions, and what the text guard makes of them."""

import json
import math
import random

import pytest

from nvlm_train.config.benchmark import load_benchmark
from nvlm_train.config.settings_file import recipes_dir
from nvlm_train.errors import DataError
from nvlm_train.evaluation.benchmark.paired import difference
from nvlm_train.evaluation.guard import Asked, Backbone, alarms, verdict


def marks(right, count):
    return [1.0] * right + [0.0] * (count - right)


def test_agresti_and_mins_interval_by_hand():
    """100 questions, 6 lost and 2 won: (2.5 - 6.5) / 102, and the standard error of the adjusted table."""
    old = marks(50, 100)
    new = [0.0] * 6 + [1.0] * 44 + [1.0] * 2 + [0.0] * 48
    found = difference(new, old)
    middle, half = -4 / 102, 1.959964 * math.sqrt(9 - 16 / 102) / 102
    assert found.mean == pytest.approx(-0.04) and found.count == 100
    assert (found.low, found.high) == (pytest.approx(middle - half), pytest.approx(middle + half))


def test_no_change_is_no_certainty():
    found = difference(marks(5, 10), marks(5, 10))
    assert found.mean == 0 and found.low < -0.1 and found.high > 0.1


def test_a_paired_interval_is_narrower_than_what_two_scores_would_give():
    """Of 400 questions both got the same 200 right, but for ten: two separate shares differ within +-6.9 points by chance."""
    old = marks(200, 400)
    new = [0.0] * 10 + old[10:]
    assert difference(new, old).high < 0 and difference(new, old).high - difference(new, old).low < 0.05


def test_the_interval_holds_what_it_promises():
    """2,000 pairs of runs over 60 questions with a true difference of -0.1: some 95% of the intervals hold it."""
    chance, held = random.Random(3), 0
    for _ in range(2000):
        cells = chance.choices(((1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)), (0.5, 0.15, 0.05, 0.3), k=60)
        found = difference([new for _, new in cells], [old for old, _ in cells])
        held += found.low <= -0.1 <= found.high
    assert 0.94 < held / 2000 < 0.98


def test_graded_marks_have_the_interval_of_their_mean():
    found = difference([0.5, 0.2, 0.9], [0.1, 0.1, 0.1])
    assert found.mean == pytest.approx(1.3 / 3)
    half = 1.959964 * math.sqrt(((0.4 - found.mean) ** 2 + (0.1 - found.mean) ** 2 + (0.8 - found.mean) ** 2) / 2) / math.sqrt(3)
    assert (found.low, found.high) == (pytest.approx(found.mean - half), pytest.approx(found.mean + half))
    assert difference([0.5], [0.1]).high == math.inf, "one graded question says nothing"


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="no question"):
        difference([], [])
    with pytest.raises(ValueError):
        difference([1.0], [1.0, 0.0])


def by_id(values):
    return {f"q{number}": value for number, value in enumerate(values)}


@pytest.mark.parametrize(("lost", "count", "margin", "alarm"), [
    (30, 100, 0.02, True),
    (30, 100, 0.35, False),     # significant, and allowed
    (2, 40, 0.02, False),       # five points, and perhaps chance
    (0, 100, 0.0, False),       # no drop at all
    (20, 400, 0.049, True),     # five points, far from chance
    (20, 400, 0.05, False),     # exactly the margin
])
def test_an_alarm_is_a_drop_beyond_the_margin_that_is_no_chance(lost, count, margin, alarm):
    old = marks(count // 2, count)
    new = [0.0] * lost + old[lost:]
    found = verdict("gsm8k", by_id(new), by_id(old), margin)
    assert found.alarm is alarm
    assert found.delta == pytest.approx(-lost / count) and found.backbone == 0.5
    if alarm:
        assert str(found).startswith(f"gsm8k fell from 50.0 to {50 - 100 * lost / count:.1f}: {-100 * lost / count:.1f} points (")


def test_better_is_never_an_alarm():
    assert not verdict("gsm8k", by_id(marks(80, 100)), by_id(marks(50, 100)), 0.0).alarm


def test_other_questions_are_refused_with_the_numbers():
    with pytest.raises(DataError, match=r"3 questions were asked now and 2 of the backbone, 2 of them the same"):
        verdict("gsm8k", by_id([1.0, 1.0, 1.0]), by_id([1.0, 1.0]), 0.02)


def test_a_backbones_answers_on_the_disk(tmp_path):
    backbone = Backbone(tmp_path, load_benchmark("gsm8k", recipes_dir() / "eval"))
    assert backbone.asked() is None
    folder = tmp_path / "benchmarks" / "backbone"
    folder.mkdir(parents=True)
    (folder / "gsm8k.jsonl").write_text('{"id": 7, "score": 1.0}\n{"id": "b", "score": 0}\n')
    assert backbone.asked() is None, "stopped between the answers and the score"
    (folder / "gsm8k.json").write_text(json.dumps({"stage": "sft", "weights": "x", "limit": 5, "max_new_tokens": 9, "score": 0.5}))
    assert backbone.asked() == Asked("sft", "x", 5, 9)
    assert backbone.marks() == {"7": 1.0, "b": 0.0}
    (folder / "gsm8k.jsonl").write_text('{"id": 7, "sco')
    with pytest.raises(DataError, match=r"gsm8k\.jsonl, the backbone's answers, cannot be read"):
        backbone.marks()


def test_alarms_that_another_job_left(tmp_path):
    assert alarms(tmp_path) == []
    word = tmp_path / "benchmarks" / "sft-step-00000004" / "alarm"
    word.parent.mkdir(parents=True)
    word.write_text("gsm8k fell\n")
    [told] = alarms(tmp_path)
    assert told == f"gsm8k fell (said by {word}: remove it to go on)"
    word.parent.rename(tmp_path / "benchmarks" / ".aside-sft-step-00000004-abc")
    assert alarms(tmp_path) == [], "a run that was rewound has other weights"
