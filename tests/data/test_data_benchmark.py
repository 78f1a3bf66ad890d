"""`benchmarks/data.py`: that contenders do equal work is a fact, and holds here; how fast they are is not tested."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("skimage", reason="the benchmark cuts its pictures from scikit-image's photographs: pip install -e .[demo]")

from benchmarks import data
from benchmarks.peers import floor, processes, with_nvlm_train
from benchmarks.peers.material import shard_folder
from benchmarks.peers.work import Meter, cpu_seconds

SAMPLES, WARM = 24, 8


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder of the benchmark with its shards in it."""
    folder = tmp_path_factory.mktemp("benchmark")
    shard_folder(folder, SAMPLES)
    return folder


@pytest.fixture(scope="module")
def ours(work):
    return with_nvlm_train.epoch(shard_folder(work, SAMPLES), "packed", 2, WARM)


def done(measured: dict) -> dict:
    return {key: measured[key] for key in data.WORK}


def test_shards_are_made_once(work):
    folder = shard_folder(work, SAMPLES)
    before = folder.stat().st_mtime_ns
    assert shard_folder(work, SAMPLES) == folder and folder.stat().st_mtime_ns == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_ours_gives_every_sample_in_rows_and_alone(work, ours):
    assert ours["samples"] == SAMPLES and ours["timed"] == SAMPLES - WARM and ours["samples_per_s"] > 0 and ours["cpu_ms"] > 0
    assert SAMPLES < ours["tiles"] <= 7 * SAMPLES and ours["text_tokens"] > 50 * SAMPLES
    assert done(with_nvlm_train.epoch(shard_folder(work, SAMPLES), "unpacked", 0, WARM)) == done(ours)


@pytest.mark.parametrize("module, package, way, workers", [
    (module, package, way, workers)
    for module, package, ways in (("with_webdataset", "webdataset", 2), ("with_energon", "megatron.energon", 3))   # it packs rows too
    for way, workers in (("usual", 0), ("fast", 2), ("fast_rows", 2))[:ways]])
def test_peers_do_the_same_work(work, ours, module, package, way, workers):
    pytest.importorskip(package, reason="a peer that is not installed here; the benchmark installs it into an environment of its own")
    peer = importlib.import_module(f"benchmarks.peers.{module}")
    assert done(peer.epoch(shard_folder(work, SAMPLES), way, workers, WARM)) == done(ours)


def test_the_floor_takes_every_picture(work):
    measured = floor.epoch(shard_folder(work, SAMPLES), 2, WARM)
    assert measured["samples"] == SAMPLES and measured["timed"] == SAMPLES - WARM


def test_the_floor_passes_on_what_a_thread_meets():
    with pytest.raises(ValueError):
        floor.in_threads([b"no picture"], 2)


def test_too_little_to_time_is_said():
    meter = Meter(8)
    meter.saw(8, 8, 8)
    with pytest.raises(RuntimeError, match="8 samples came, none after the first 8"):
        meter.stop()


def test_processor_time_counts_children_living_and_ended():
    before, burn = cpu_seconds(), "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        living = cpu_seconds() - before
        child.communicate(b"\n")
    ended = cpu_seconds() - before
    assert 0.4 < living <= ended + 0.05 and ended < 5


def test_other_work_is_told():
    rows = [data.Contender(name, module, "usual", (0,), runs=[{"samples": 8, "tiles": tiles, "text_tokens": 99, "workers": 1}])
            for name, module, tiles in (("ours", "with_nvlm_train", 40), ("other", "with_other", 39), ("floor", "floor", 0))]
    assert data.unequal(rows) == ["other with 1 workers: 39 tiles, ours 40"]


def test_a_contender_that_hangs_is_ended_with_its_children():
    script = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
    start = time.monotonic()
    with pytest.raises(processes.ContenderFailed, match="ended after 1 s without a result"):
        processes.finish([sys.executable, "-c", script], os.environ, 1.0)
    assert time.monotonic() - start < 30      # the grandchild held the pipes open


def test_what_cannot_be_installed_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    said = "WARNING: old pip\nERROR: No matching distribution found for energy==1\n\n"
    monkeypatch.setattr(processes, "finish", lambda command, *_: (int("pip" in command), "", said))
    with pytest.raises(processes.ContenderFailed, match="not installed, pip says: ERROR: No matching distribution found for energy==1"):
        processes.interpreter(tmp_path, "energy==1")
    assert not any((tmp_path / "environments").glob("*/complete.txt"))


@pytest.mark.parametrize("arguments", (["--warm", "6"], ["--samples", "8", "--warm", "8"], ["--samples", "33", "--warm", "16"], ["--cores", "4096"]))
def test_impossible_settings_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        data.main(["--here", *arguments])
    assert arguments[-2] in capsys.readouterr().err


@pytest.mark.full
def test_the_command_tells_what_ran_and_what_did_not(work, tmp_path):
    """As a file, from the root, with the peers that are installed here; one that is not is in the table, and in the exit status."""
    told, others = tmp_path / "result.json", ("Energon, usual", "webdataset, fast", "floor")
    run = subprocess.run([sys.executable, "benchmarks/data.py", "--work", work, "--samples", str(SAMPLES), "--warm", str(WARM), "--rounds", "1",
                          "--workers", "1", "--cores", "1", "--here", "--json", told, "--only", *others],
                         cwd=processes.ROOT, capture_output=True, text=True, timeout=300, check=False)
    result = json.loads(told.read_text())
    assert json.loads(run.stdout.splitlines()[-1]) == result
    names = {"nvlm_train", *others}
    assert set(result["contenders"]) | set(result["failed"]) == names and not set(result["contenders"]) & set(result["failed"])
    installed = {"Energon": importlib.util.find_spec("megatron.energon"), "webdataset": importlib.util.find_spec("webdataset")}
    assert set(result["failed"]) == {name for name in names if installed.get(name.partition(",")[0], True) is None}
    assert all("No module named" in reason for reason in result["failed"].values())
    assert result["unequal"] == [] and run.returncode == bool(result["failed"])
    assert all(name in run.stdout for name in names)
