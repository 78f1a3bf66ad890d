"""Programs that loop, fork, write, open sockets or leave early: contained, counted as failed, and nothing of them stays behind.

Every test runs behind the kernel's wall, where this machine has one, and without it.
"""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nvlm_train.evaluation.sandbox import Limits, child, kernel_walls, run

WALLS = [pytest.param(True, marks=pytest.mark.skipif(not kernel_walls(), reason="no user namespaces here"), id="walls"),
         pytest.param(False, id="no walls")]
walled = pytest.mark.parametrize("walls", WALLS)


def all_gone(file: Path | str = child.__file__) -> bool:
    """Whether no process runs this file any more; those that were killed get a while to be gone."""
    deadline = time.monotonic() + 30
    while any(str(file) in line for line in _lines()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _lines() -> list[str]:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()


@walled
def test_a_program_that_comes_to_its_end_passes(walls):
    outcome = run("import math, hashlib, collections, re, typing, random, string, copy, heapq, itertools\nassert math.sqrt(4) == 2\nprint('x')",
                  walls=walls)
    assert (outcome.passed, outcome.note, outcome.walled) == (True, "passed", walls)


@walled
@pytest.mark.parametrize(("program", "note"), [
    ("assert 1 == 2, 'no'", "AssertionError: no"), ("def (", "SyntaxError"), ("raise SystemExit(0)", "SystemExit"),
    ("import os; os._exit(0)", "left early with status 0"), ("x = '\ud800'", "UnicodeEncodeError"), ("input()", "EOFError"),
    ("x = [0] * (1 << 40)", "out of memory")], ids=["assert", "syntax", "exit", "hard exit", "surrogate", "input", "memory"])
def test_a_program_that_does_not_fails(walls, program, note):
    outcome = run(program, walls=walls)
    assert not outcome.passed and outcome.note.startswith(note)


@walled
def test_what_changes_the_machine_is_refused(walls, tmp_path):
    """All in one process: each line must raise, or the program fails with the number of the first that did not."""
    victim = tmp_path / "victim"
    victim.write_text("kept")
    tries = [f"open({str(victim)!r}, 'w')", f"open({str(victim)!r}, 'r+')", "open('here', 'w')", "open('here', 'x')", "os.open('here', 65)",
             f"os.remove({str(victim)!r})", f"os.rename({str(victim)!r}, 'x')", f"os.truncate({str(victim)!r}, 0)", "os.mkdir('d')",
             f"os.chmod({str(victim)!r}, 0)", "os.fork()", "os.system('true')", "os.kill(os.getppid(), 9)", "os.killpg(0, 9)",
             "os.execv('/bin/true', ['true'])", "os.posix_spawn('/bin/true', ['true'], {})", "__import__('subprocess').run(['true'])",
             "__import__('multiprocessing').Process(target=print).start()", "__import__('socket').socket()", "__import__('_socket').socket()",
             "__import__('socket').create_connection(('127.0.0.1', 9))", "__import__('urllib.request').request.urlopen('http://127.0.0.1')",
             "__import__('ctypes')", "__import__('_ctypes')", "__import__('shutil').rmtree('/tmp')",
             "__import__('resource').setrlimit(0, (99, 99))", f"__import__('sqlite3').connect({str(victim)!r})"]
    program = "import os\nfailed = []\n" + "".join(
        f"try:\n    {line}\n    failed.append({number})\nexcept (OSError, ImportError):\n    pass\n" for number, line in enumerate(tries))
    outcome = run(f"{program}assert not failed, failed", walls=walls)
    assert outcome.passed, [tries[int(number)] for number in re.findall(r"[0-9]+", outcome.note)]
    assert victim.read_text() == "kept" and victim.stat().st_mode & 0o777


@walled
@pytest.mark.parametrize("program", ["while True: pass", pytest.param("x = 10 ** 10 ** 9", marks=pytest.mark.full)])
def test_a_program_that_does_not_end_is_ended(walls, program):
    outcome = run(program, Limits(cpu_s=1), walls=walls)
    assert not outcome.passed and outcome.note.startswith("timed out") and all_gone()


def test_a_program_that_sleeps_is_ended(monkeypatch):
    monkeypatch.setattr("nvlm_train.evaluation.sandbox.parent.PATIENCE", 0.0)
    started = time.monotonic()
    outcome = run("import time; time.sleep(600)", Limits(cpu_s=1))
    assert outcome.note == "timed out: 1 s went by" and time.monotonic() - started < 60 and all_gone()


@walled
def test_a_program_cannot_say_that_it_passed(walls):
    """It may find the pipe, but does not know what stands in front of a verdict."""
    outcome = run("import os\nfor number in range(3, 30):\n    try:\n        os.write(number, b'{\"token\": \"\", \"note\": \"passed\"}')\n"
                  "    except OSError:\n        pass\nos._exit(0)", walls=walls)
    assert not outcome.passed


@pytest.mark.skipif(not kernel_walls(), reason="no user namespaces here")
def test_the_wall_stands_without_pythons_events(tmp_path, monkeypatch):
    """As for a program that gets around Python: the same child without its audit hook cannot write, nor see processes or a network."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    bare = tmp_path / "child.py"
    bare.write_text(Path(child.__file__).read_text().replace("    sys.addaudithook(refuse)\n", ""))
    monkeypatch.setattr("nvlm_train.evaluation.sandbox.parent.CHILD", bare)
    victim = tmp_path / "victim"
    victim.write_text("kept")
    # The second says that a namespace of its own gives it no way back; the last that what it writes lies in memory.
    program = f"""
import os, socket, subprocess
for path in ({str(victim)!r}, "/etc/hosts", "/tmp/nvlm-escaped"):
    try:
        open(path, "a").write("x")
    except OSError as error:
        assert error.errno in (13, 30), error
    else:
        raise AssertionError(path)
assert subprocess.run(["mount", "-o", "remount,rw", "/"], stderr=-3).returncode
assert not [name for name in os.listdir("/proc") if name == "{os.getpid()}" and os.getpid() == int(name)]
try:
    socket.create_connection(("127.0.0.1", {port}), 1)
except OSError:
    pass
else:
    raise AssertionError("network")
if os.fork() == 0:
    os.setsid()
    while True:
        pass
open("here", "w").write("kept in memory")
"""
    outcome = run(program, Limits(cpu_s=2))
    listening.close()
    assert outcome.passed, outcome.note
    assert victim.read_text() == "kept" and not Path("/tmp/nvlm-escaped").exists()
    assert all_gone(bare)


def test_without_the_tool_there_is_no_wall(monkeypatch):
    kernel_walls.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert not kernel_walls()
    assert run("x = 1").walled is False
    kernel_walls.cache_clear()


def test_the_child_needs_nothing_of_ours():
    done = subprocess.run([sys.executable, "-I", "-S", "-c", f"import runpy; runpy.run_path({child.__file__!r}, run_name='child')"],
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
