import io
import re

import pytest
from rich.console import Console
from training_fakes import FakeEngine, make_batches, make_run

from nvlm_train.training.loop import train
from nvlm_train.training.metrics import Recorder
from nvlm_train.training.progress import ProgressLine, duration, human


def shown(run, engine=None, **console):
    out = io.StringIO()
    engine = engine or FakeEngine()
    line = ProgressLine(run, Console(file=out, soft_wrap=True, highlight=False, **console))
    train(run, engine, make_batches(run), [Recorder(run, engine, [line], [], lambda step: True, ["here"], None)])
    return out.getvalue()


def test_without_a_terminal_plain_lines_are_printed_now_and_then():
    lines = shown(make_run(steps=400), force_terminal=False).splitlines()
    numbers = [int(re.search(r"(\d+)/400", line)[1]) for line in lines]
    assert numbers == [1, *range(4, 401, 4)]
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  pretrain 400/400  loss 1\.0000  lr 1\.00e-05  grad 0\.50  \S+ samples/s  \S+ tokens/s  fill 62%"
        r"  wait \d+%  0s left", lines[-1])
    assert not any("\x1b" in line for line in lines)


def test_skipped_steps_are_always_told():
    losses = [1.0] * 400
    losses[1] = float("nan")
    text = shown(make_run(steps=400), FakeEngine(losses=losses), force_terminal=False)
    assert "pretrain 2/400  loss nan" in text and "NOT FINITE: update skipped" in text


def test_on_a_terminal_one_line_is_kept_up_to_date():
    text = shown(make_run(steps=3), force_terminal=True, width=200)
    assert "3/3  loss 1.0000" in text and "\x1b[" in text


def test_validation_is_told():
    out = io.StringIO()
    line = ProgressLine(make_run(steps=5), Console(file=out, soft_wrap=True, highlight=False))
    line.evaluation({"stage": "sft", "step": 5, "loss": 1.25, "source_losses": {"web": 1.5, "text": 1.0}})
    line.evaluation({"stage": "sft", "step": 5, "loss": None, "source_losses": {}})
    assert out.getvalue().splitlines() == ["sft 5/5  validation loss 1.2500  web 1.5000  text 1.0000",
                                           "sft 5/5  validation no supervised tokens"]


@pytest.mark.parametrize("number, text", [
    (0, "0"), (0.5, "0.50"), (7, "7"), (42.25, "42.2"), (999, "999"), (1000, "1k"), (12_345, "12.3k"), (72.7e9, "72.7B"),
    (3.2e12, "3.20T"),
])
def test_counts_have_three_digits(number, text):
    assert human(number) == text


@pytest.mark.parametrize("seconds, text", [
    (0, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (185, "3m 05s"), (7620, "2h 07m"), (273_600, "3d 04h"),
])
def test_durations(seconds, text):
    assert duration(seconds) == text
