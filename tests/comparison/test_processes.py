import io
import os
import signal

import pytest
from rich.console import Console

from nvlm_train.comparison.processes import ProcessFailed, run_module


def test_a_single_process_is_started_plainly_and_its_output_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")     # of a job that is none of the module's business
    (tmp_path / "told.py").write_text("import os\nprint('sft: 3 steps')\nprint('chatter', os.environ.get('WORLD_SIZE'))\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    screen = io.StringIO()
    run_module(["told"], 1, tmp_path / "logs" / "told.log", Console(file=screen))
    assert screen.getvalue() == "  sft: 3 steps\n"
    assert (tmp_path / "logs" / "told.log").read_text() == "sft: 3 steps\nchatter None\n"


def test_a_failure_carries_the_end_of_the_output(tmp_path):
    with pytest.raises(ProcessFailed, match="no_such_module ended with code 1(?s:.)*No module named no_such_module"):
        run_module(["no_such_module"], 1, tmp_path / "log", Console(file=io.StringIO()))


SAVES = """\
import signal, sys, time
def save(*_):
    time.sleep(0.2)
    print("sft: saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("sft: 3 steps", flush=True)
time.sleep(60)
"""


def test_told_to_stop_the_module_may_save_first(tmp_path, monkeypatch):
    (tmp_path / "saves.py").write_text(SAVES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    class Stopper(io.StringIO):
        """A screen that has us stopped once the module has told something."""

        def write(self, text):
            if "3 steps" in text:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().write(text)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_module(["saves"], 1, tmp_path / "log", Console(file=Stopper()))
    assert (tmp_path / "log").read_text() == "sft: 3 steps\nsft: saved\n"
    assert signal.getsignal(signal.SIGTERM) is before
