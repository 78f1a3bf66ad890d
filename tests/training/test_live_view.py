"""The live view: what stands in it, at any width, and that nothing tears it. The last test drives the real command on a pseudo-terminal."""

import io
import logging
import math
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from dataclasses import replace
from fcntl import ioctl

import pytest
from rich.console import Console
from training_fakes import FakeEngine, make_batches, make_run, with_run

from nvlm_train.training.background import Guarded
from nvlm_train.training.live import LiveView
from nvlm_train.training.loop import train
from nvlm_train.training.metrics import Recorder
from nvlm_train.training.panel import panel, sparkline
from nvlm_train.training.progress import ProgressLine
from nvlm_train.training.view import view_of, watch
from nvlm_train.training.watched import EVENTS
from tests.engine.launching import ROOT

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def row(step: int, **values) -> dict:
    return {"stage": "pretrain", "step": step, "loss": 4.0 / step, "lr": 1e-4, "grad_norm": 0.5, "skipped": False, "refused": 0,
            "tokens": 12_000, "samples": 16, "step_s": 0.5, "data_wait_s": 0.1, "fill": 0.9, "mfu": 0.41, "peak_memory_gib": 61.5,
            "tflops": {"total": 405.0}, "slowest_rank": 5, "slowest_host": "dgx-02", "straggler_share": 0.18,
            "source_losses": {"captions": 1.25, "text": 2.5}, **values}


def watched(steps=100, done=40, **values):
    run = make_run(steps=steps)
    seen = watch([run, replace(run, stage="sft")], run, 0)
    for step in range(1, done + 1):
        seen.step(row(step, **values))
    return seen


def shown(seen, width: int, encoding="utf-8") -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=out, width=width, force_terminal=False).print(panel(seen, width))
    out.seek(0)
    return out.read()


def test_everything_worth_knowing_is_in_view():
    seen = watched()
    seen.validation = {"stage": "pretrain", "step": 40, "loss": 1.75}
    seen.saved = (30, 2.25)
    seen.answered(40, [{"correct": True}, {"correct": False}, {"correct": None}])
    seen.happened("12:00:00  step 9: 2 samples refused (too_long)")
    text = shown(seen, 100)
    for part in ("test, pretrain", "40/100  30s left", "0/100", "loss 0.1000", "1.00e-04", "24k tokens/s, 32 samples/s",
                 "405 TFLOP/s a device, MFU 41%", "20% of a step", "rank 5 on dgx-02, costs 18%", "61.5 GiB at most", "90% of the rows",
                 "1.7500 at 40", "1 of 3 right at 40", "at 30, stood still 2.2 s", "captions 1.2500  text 2.5000", "2 samples refused"):
        assert part in text, part
    assert "refused   " not in text and "skipped" not in text    # none so far


@pytest.mark.parametrize("width", [20, 40, 76, 200])
def test_it_fits_any_width(width):
    seen = watched(skipped=True, refused=3)
    seen.happened("12:00:00  " + "a long warning " * 10)
    lines = shown(seen, width).splitlines()
    assert len(lines) > 8 and all(len(line) == width for line in lines)


def test_it_is_plain_letters_where_the_terminal_knows_no_others():
    shown(watched(), 80, encoding="ascii").encode("ascii")


def test_before_the_first_step_there_is_progress_only():
    assert "0/100" in shown(watched(done=0), 60)


def test_a_device_without_a_known_peak_and_a_job_of_one_process():
    text = shown(watched(mfu=None, slowest_rank=None, slowest_host=None, straggler_share=0.0, source_losses={}), 100)
    assert "MFU" not in text and "slowest" not in text and "by source" not in text


@pytest.mark.parametrize(("values", "width", "expected"), [
    ([], 10, ""), ([1.0], 10, "a"), ([0.0, 1.0, 2.0, 3.0], 10, "abcd"), ([3.0, 3.0, 0.0, 0.0], 2, "da"), ([2.0, 2.0], 5, "aa"),
    ([0.0, math.nan, 3.0], 3, "axd"), ([math.inf, math.inf], 2, "xx"), ([float(n) for n in range(1000)], 4, "abcd"),
])
def test_the_curve_is_as_wide_as_there_is_room(values, width, expected):
    assert sparkline(values, width, "abcd") == expected


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Log lines go to a terminal."""
    out = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    handler = logging.StreamHandler(out)
    logging.getLogger().addHandler(handler)
    yield out
    logging.getLogger().removeHandler(handler)


def train_with(view, run, **settings):
    engine = FakeEngine(**settings)
    train(run, engine, make_batches(run), [Recorder(run, engine, [Guarded("view", view)], [], lambda step: True, ["here"], None)])


def test_warnings_and_bad_steps_are_news_in_the_panel_and_none_is_lost(terminal):
    """More news than fit: the older ones are printed above the panel. Afterwards log lines go where they went."""
    run = make_run(steps=4)
    console = Console(file=terminal, force_terminal=True, width=100, height=60, force_interactive=True)
    view = LiveView(watch([run], run, 0), console)

    def warn(step):
        if step == 3:
            for number in range(EVENTS + 1):
                logging.getLogger("nvlm_train.test").warning("shard %d at s3://me:hunter2@host/x is slow", number)

    train_with(view, run, losses=[1.0, math.nan, 1.0, 1.0], during=warn)
    logging.getLogger("nvlm_train.test").warning("afterwards")
    text = ESCAPE.sub("", terminal.getvalue())
    assert "hunter2" not in text
    last = text[text.rindex("╭"):]
    assert [number for number in range(EVENTS + 1) if f"shard {number} at s3://[redacted]@host" in last] == list(range(1, EVENTS + 1))
    assert "1 steps, not finite" in last and "4/4" in last and last.endswith("afterwards\n")
    above = [line for line in text.splitlines() if not line.startswith(("│", "╭", "╰"))]
    assert any("step 2: loss or gradient not finite" in line for line in above) and any("shard 0" in line for line in above)
    assert terminal.getvalue().count("\x1b[?25h") == terminal.getvalue().count("\x1b[?25l") == 1      # the cursor is back


def test_being_told_to_stop_is_shown_in_the_panel(terminal):
    run = make_run(steps=2)
    view = LiveView(watch([run], run, 0), Console(file=terminal, force_terminal=True, width=80, height=60))
    train_with(view, run, during=lambda step: step == 2 and view.stopping("SIGTERM: finishing this step"))
    assert "SIGTERM: finishing this step" in terminal.getvalue()


@pytest.mark.parametrize(("view", "is_terminal", "kind", "live"), [
    ("auto", True, LiveView, None), ("live", True, LiveView, None), ("line", True, ProgressLine, True), ("plain", True, ProgressLine, False),
    ("auto", False, ProgressLine, False), ("live", False, ProgressLine, False), ("line", False, ProgressLine, False),
])
def test_which_view_it_is(terminal, monkeypatch, view, is_terminal, kind, live):
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(terminal, "isatty", lambda: is_terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    run = with_run(make_run(steps=3), view=view)
    chosen = view_of([run], run, 0)
    assert type(chosen) is kind
    if kind is ProgressLine:
        train_with(chosen, run)
        assert ("\x1b" in terminal.getvalue()) is live
        assert "3/3  loss 1.0000" in ESCAPE.sub("", terminal.getvalue()).replace("\n", " ")


@pytest.mark.full
def test_the_real_command_on_a_narrow_terminal_is_interrupted(tmp_path):
    """40 columns, Ctrl-C at the third step: told in the panel, everything saved, the last frame whole and the cursor back."""
    words = ["train", "recipe=nvlm_d_tiny", "stage=pretrain", f"run.dir={tmp_path / 'run'}", "train.steps=2000", "train.global_batch=2",
             "run.device=cpu", "run.examples=0", "run.eval_batches=1"]
    code, text = on_terminal([sys.executable, "-m", "nvlm_train", *words], columns=40, until=re.compile(r" [3-9]/2,000"), timeout=120)
    assert code == 75, text[-2000:]
    plain = ESCAPE.sub("", text.replace("\r\n", "\n"))
    last = plain[plain.rindex("╭"):]
    frame, after = last[:last.index("╯") + 1].splitlines(), last[last.index("╯") + 1:]
    assert {len(line) for line in frame} == {40} and "SIGINT: finishing this step" in last, last
    assert after.strip().startswith("nvlm: stopped by SIGINT after step") and "everything is saved" in after
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "Traceback" not in plain


def on_terminal(command: list[str], columns: int, until: re.Pattern, timeout: float) -> tuple[int, str]:
    """Run a command on a pseudo-terminal; press Ctrl-C once it has shown `until`. Its exit status and all that it showed."""
    pid, master = pty.fork()
    if pid == 0:
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        os.execve(command[0], command, {**kept, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore",
                                        "PYTHONIOENCODING": "utf-8"})
    ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    shown, pressed, end = b"", False, time.monotonic() + timeout
    try:
        while time.monotonic() < end:
            if not select.select([master], [], [], 0.5)[0]:
                continue
            try:
                shown += os.read(master, 65536)
            except OSError:     # the other end is closed
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()
            if not pressed and until.search(ESCAPE.sub("", shown.decode(errors="replace"))):
                os.write(master, b"\x03")
                pressed = True
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        pytest.fail(f"still running after {timeout} s:\n{shown.decode(errors='replace')[-2000:]}")
    finally:
        os.close(master)
