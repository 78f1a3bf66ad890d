"""Which view of a run stands on standard output: the panel, one line, or plain lines of text."""

import io
import sys
from collections.abc import Sequence

from rich.console import Console

from nvlm_train.config.schema import Run
from nvlm_train.training.background import Guarded
from nvlm_train.training.live import LiveView
from nvlm_train.training.progress import ProgressLine
from nvlm_train.training.watched import Watched

View = LiveView | ProgressLine


def view_of(runs: Sequence[Run], run: Run, start_step: int) -> View:
    """The view of one stage, as `run.view` says. Where standard output is no terminal it is plain lines without any escape code,
    whatever was asked for and whatever FORCE_COLOR says."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")    # a name that the terminal cannot show is worth no error
    terminal = sys.stdout.isatty() and not Console().is_dumb_terminal
    if not terminal or run.run.view == "plain":
        return ProgressLine(run, Console(soft_wrap=True, highlight=False, force_terminal=False, no_color=True, color_system=None))
    if run.run.view == "line":
        return ProgressLine(run, Console(soft_wrap=True, highlight=False))
    return LiveView(watch(runs, run, start_step), Console(highlight=False))


def watch(runs: Sequence[Run], run: Run, start_step: int) -> Watched:
    """A stage that begins after `start_step` finished steps: stages before it are done, those after it are not begun."""
    at = [each.stage for each in runs].index(run.stage)
    done = [each.train.steps if number < at else start_step if number == at else 0 for number, each in enumerate(runs)]
    return Watched(run.recipe, run.stage, [(each.stage, steps, each.train.steps) for each, steps in zip(runs, done, strict=True)])


def guarded(view: View) -> Guarded:
    """A terminal that is gone (a closed connection) ends the view, and not the run."""
    return Guarded("the view on standard output", view)
