"""Secrets are planted wherever a person may put one; afterwards nothing that a run has written or said holds them, wandb's and
TensorBoard's own files included."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import tiny
from nvlm_train import cli
from nvlm_train.redaction import REDACTED
from tests.data.remote_servers import web
from tests.engine.launching import ROOT

LOGIN = "pa55w0rd-of-the-store"
ENVIRONMENT = {"WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567", "HF_TOKEN": "hf_PlantedPlantedPlanted", "DB_PASSWORD": "planted password"}
BARE = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LC_ALL": "C", "TZ": "Asia/Kathmandu"}
SECRETS = [LOGIN, *ENVIRONMENT.values(), base64.b64encode(f"me:{LOGIN}".encode()).decode()]
SMALL = ["recipe=nvlm_d_tiny", "stage=pretrain", "train.steps=2", "train.warmup_steps=0", "train.global_batch=2", "run.eval_batches=1",
         "run.device=cpu"]


def found(content: bytes) -> list[str]:
    return [secret for secret in SECRETS if secret.encode() in content]


@pytest.mark.slow
def test_nothing_that_a_run_leaves_behind_holds_a_secret(tmp_path):
    """In an environment with little else: no home, the C locale, an odd time zone."""
    run_dir, log = tmp_path / "run", tmp_path / "log"
    with web(tiny.ensure("tiny") / "pretrain") as (port, asked):
        words = [*SMALL, f"run.dir={run_dir}", f"data.blend={{web:{{path:'http://me:{LOGIN}@127.0.0.1:{port}'}}}}", "run.wandb=offline",
                 "run.tensorboard=true", f"data.cache_dir={tmp_path / 'cache'}", "run.examples=0"]
        with log.open("wb") as out:
            done = subprocess.run([sys.executable, "-m", "nvlm_train", "train", *words], stdout=out, stderr=subprocess.STDOUT, timeout=400,
                                  env={**BARE, **ENVIRONMENT, "NVLM_CACHE": os.environ["NVLM_CACHE"]}, check=False)
    assert done.returncode == 0, log.read_text()[-3000:]
    assert asked     # the run was fed from there
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    kinds = {"config.yaml", "segments.json", "report.html", "metrics.jsonl", "status.json", "examples.jsonl"}
    assert kinds <= {path.name for path in files}
    for pattern in ("*.wandb", "events.out.tfevents.*", "debug.log", "manifest.json"):
        assert any(path.match(pattern) for path in files), pattern
    assert {str(path): leaks for path in [*files, log] if (leaks := found(path.read_bytes()))} == {}
    assert f"http://{REDACTED}@127.0.0.1:{port}" in (run_dir / "config.yaml").read_text()
    assert f"http://{REDACTED}@127.0.0.1:{port}" in (run_dir / "segments.json").read_text()


def test_nothing_that_the_command_line_says_holds_a_secret(tmp_path, monkeypatch, capsys):
    """The address of a store that is not there: in the configuration, in what would run, and in the error."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    words = [*SMALL, f"data.blend.web.path=http://me:{LOGIN}@127.0.0.1:9/shards", f"run.dir={tmp_path / 'run'}"]
    for command, code in (["show-config", *words], 0), (["show-config", "--json", *words], 0), (["train", "--dry-run", *words], 0):
        assert cli.main(command) == code
        told = capsys.readouterr()
        assert f"http://{REDACTED}@127.0.0.1:9/shards" in told.out and found((told.out + told.err).encode()) == []
    assert cli.main(["train", *words, f"data.blend.other.api_key={LOGIN}", f"hub_token={LOGIN}"]) == 2
    told = capsys.readouterr()
    assert "unknown key" in told.err and found(told.err.encode()) == []


def test_what_an_error_repeats_of_an_address_or_the_environment_is_redacted(monkeypatch, capsys):
    def fail(words, flags):
        raise cli.NvlmError(f"s3://me:{LOGIN}@host/x: refused, the key was {ENVIRONMENT['WANDB_API_KEY']}")

    monkeypatch.setenv("WANDB_API_KEY", ENVIRONMENT["WANDB_API_KEY"])
    monkeypatch.setitem(cli.VERBS, "train", cli.VERBS["train"].__class__(fail, "", ""))
    assert cli.main(["train"]) == 1
    assert capsys.readouterr().err == f"nvlm: s3://{REDACTED}@host/x: refused, the key was {REDACTED}\n"


def test_a_traceback_of_a_real_process_is_redacted_also_once_torch_has_its_own_hook(tmp_path):
    """torch.distributed prints every uncaught error a second time by a hook of its own."""
    code = f"""
import os, sys
from nvlm_train import cli
from nvlm_train.verbs import Verb

def fail(words, flags):
    sys.excepthook = lambda *error: print("hook of a library:", error[1], file=sys.stderr)
    raise ValueError("s3://me:{LOGIN}@host/x and " + os.environ["DB_PASSWORD"])

cli.VERBS["train"] = Verb(fail, "", "")
sys.exit(cli.main(["train"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False, cwd=tmp_path,
                          env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert found(done.stderr) == [] and b"Traceback" in done.stderr and REDACTED.encode() in done.stderr
    assert b"hook of a library" not in done.stderr
    assert not list(Path(tmp_path).iterdir())
