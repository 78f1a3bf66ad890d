"""launch/ and the containers: scripts that start what they say, images of pinned versions that fit each other and the package."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import nvlm_train
from nvlm_train.config.cluster import Cluster
from nvlm_train.config.cluster_file import compose_cluster
from nvlm_train.config.compose import compose
from nvlm_train.config.submission import Submission, take_submission
from nvlm_train.config.typed import build
from nvlm_train.launching.jobs import plan_jobs
from nvlm_train.launching.script import render

ROOT = Path(nvlm_train.__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
CONTAINERS = LAUNCH / "container"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
DOCKERFILES = sorted(CONTAINERS.glob("Dockerfile*"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDS = {Requirement(text).name: Requirement(text).specifier for text in PROJECT["dependencies"]}
PAIRS = (ROOT / "docs" / "containers.md").read_text(encoding="utf-8")


def arguments(dockerfile: Path) -> dict[str, str]:
    return dict(re.findall(r"^ARG (\w+)=(\S+)$", dockerfile.read_text(encoding="utf-8"), re.MULTILINE))


def started(script: str, *words: str, tmp_path: Path) -> tuple[int, list[str], str]:
    """(exit status, the command line that was started, what was complained) with a stand-in for Python."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" "$@"\n', encoding="ascii")
    python.chmod(0o755)
    done = subprocess.run([LAUNCH / script, *words], check=False, capture_output=True, text=True, timeout=30,
                          env={**os.environ, "PYTHON": str(python)})
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_correct_shell(script):
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert "set -" in script.read_text(encoding="utf-8") and len(SCRIPTS) == 4
    assert script.suffix == ".sbatch" or os.access(script, os.X_OK)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    done = subprocess.run(["shellcheck", "--severity=style", script], check=False, capture_output=True, text=True)
    assert done.stdout == ""


def test_local(tmp_path):
    code, words, _ = started("local.sh", "4", "recipe=nvlm_d_tiny", "data.system_prompt=two words", tmp_path=tmp_path)
    assert (code, words) == (0, ["600", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", "-m", "nvlm_train",
                                 "train", "recipe=nvlm_d_tiny", "data.system_prompt=two words"])


def test_several_machines_agree_on_where_to_meet(tmp_path):
    first = started("multinode.sh", "2", "8", "node1", "recipe=nvlm_d_8b", "run.dir=/shared/a", tmp_path=tmp_path)
    again = started("multinode.sh", "2", "8", "node1:29400", "recipe=nvlm_d_8b", "run.dir=/shared/a", tmp_path=tmp_path)
    other = started("multinode.sh", "2", "8", "node1", "recipe=nvlm_d_8b", "run.dir=/shared/b", tmp_path=tmp_path)
    assert first == again and first[0] == 0
    assert {"--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=node1:29400", "--rdzv-backend=c10d"} <= set(first[1])
    assert first[1][-4:] == ["nvlm_train", "train", "recipe=nvlm_d_8b", "run.dir=/shared/a"]
    assert [word for word in first[1] if "--rdzv-id" in word] != [word for word in other[1] if "--rdzv-id" in word]


def test_a_rank_by_hand_finds_its_place_in_slurms_environment(tmp_path, monkeypatch):
    for name, value in {"PROCID": "9", "LOCALID": "1", "NTASKS": "16", "STEP_TASKS_PER_NODE": "8(x2)", "JOB_ID": "123456",
                        "STEP_NODELIST": "n[1-2]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    scontrol, python = tmp_path / "scontrol", tmp_path / "python"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[1-2]" ] && printf "n1\nn2\n"\n', encoding="ascii")
    python.write_text('#!/bin/sh\necho "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $*"\n')
    for path in (scontrol, python):
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    done = subprocess.run([LAUNCH / "rank.sh", "doctor", "--distributed"], check=True, capture_output=True, text=True)
    assert done.stdout == "9 1 16 8 n1:23456 -m nvlm_train doctor --distributed\n"


def test_the_docs_show_words_and_settings_that_exist():
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    rows = text.split("| setting | default |")[1].split("\n\n")[0]
    told = {name for row in rows.splitlines()[2:] for name in re.findall(r"`([a-z_]+)", row.split("|")[1])}
    assert told == {field.name for field in fields(Cluster)}
    shown = [shlex.split(line, comments=True) for line in re.findall(r"^nvlm submit (.*)$", text, re.MULTILINE)]
    (own,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert build(Cluster, yaml.safe_load(own)).container.runtime == "pyxis"
    for words in shown:
        asked, rest = take_submission([word for word in words if word != "--dry-run"])
        cluster = compose_cluster("dgx_h100", asked.changes)
        assert plan_jobs(asked, cluster, rest, compose(rest), Path("/shared"))
    assert len(shown) == 3 and all((ROOT / "docs" / link).exists() for link in re.findall(r"\]\(([^)#]+)\)", text))


@pytest.mark.parametrize(("script", "words"), [
    ("rank.sh", ("train",)), ("local.sh", ()), ("local.sh", ("recipe=x",)), ("local.sh", ("0", "recipe=x")), ("local.sh", ("2",)),
    ("multinode.sh", ("2", "8", "recipe=x", "run.dir=y")), ("multinode.sh", ("2", "x", "node1", "recipe=x")),
    ("multinode.sh", ("2", "8", "node1")),
])
def test_wrong_use_is_told(script, words, tmp_path):
    code, out, told = started(script, *words, tmp_path=tmp_path)
    assert (code, out) == (2, []) and told.startswith("usage: ") and f"launch/{script}" in told


def test_the_plain_batch_script_is_the_templates():
    """UPDATE_GOLDEN=1 writes it."""
    words, workdir = ("recipe=nvlm_d_8b", "stage=all"), Path("/shared/nvlm")
    (job,) = plan_jobs(Submission("slurm", nodes=2), compose_cluster("slurm", ()), words, compose(words), workdir)
    made = render(job, "slurm")
    file = LAUNCH / "slurm.sbatch"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(made, encoding="utf-8")
    assert file.read_text(encoding="utf-8") == made, "UPDATE_GOLDEN=1 if that is meant"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_pinned_and_hold_what_is_here(dockerfile):
    text, given = dockerfile.read_text(encoding="utf-8"), arguments(dockerfile)
    (base,) = re.findall(r"^FROM (\S+)$", text, re.MULTILINE)
    assert re.search(r":\d+\.\d+[\w.-]*$", base.replace("${BASE}", given.get("BASE", ""))), "a release, not latest"
    assert "latest" not in text
    ours = {"MEGATRON_CORE": "megatron-core", "TORCH": "torch"}
    assert "MEGATRON_CORE" in given
    assert all(Version(given[name]) in NEEDS[package] for name, package in ours.items() if name in given)
    assert set(re.findall(r"\$\{(\w+)\}", text)) <= set(given), "every argument has a value"
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [name for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for name in line.split()[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    assert all(f"!{name.split('/')[0]}" in ignored for name in copied)
    assert {"nvlm_train", "data_prep", "recipes", "setup.py", "pyproject.toml"} <= set(copied) and len(DOCKERFILES) == 2


def test_apptainer_builds_what_docker_builds():
    text, docker = (CONTAINERS / "nvlm.def").read_text(encoding="utf-8"), CONTAINERS / "Dockerfile"
    given = arguments(docker)
    assert f"From: {given['BASE']}\n" in text and f'"megatron-core=={given["MEGATRON_CORE"]}"' in text
    files = text.split("%files")[1].split("%post")[0]
    named = [name for line in files.splitlines() if line.strip() for name in line.split()[:-1]]
    in_docker = re.findall(r"^COPY (.+) \S+$", docker.read_text(encoding="utf-8"), re.MULTILINE)
    assert all((ROOT / name).exists() for name in named)
    assert {name.split("/")[0] for name in named} == {name.split("/")[0] for line in in_docker for name in line.split()}
    both = (text, docker.read_text(encoding="utf-8"))
    (extras,) = {match for source in both for match in re.findall(r'"\.\[([\w,]+)\]"', source)}
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def test_the_table_of_versions_fits_the_package_and_the_image():
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", PAIRS, re.MULTILINE)
    assert len(rows) >= 4 and all(Version(core) in NEEDS["megatron-core"] for core, _, _ in rows)
    given = arguments(CONTAINERS / "Dockerfile")
    image = given["BASE"].split(":")[1].removesuffix("-py3")
    assert (given["MEGATRON_CORE"], image) in {(core, image) for core, _, image in rows}
    assert all(Version(python) >= Version("3.12") for core, python, _ in rows if Version(core) >= Version("0.17"))


def test_what_an_image_brings_is_kept(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("keep", CONTAINERS / "keep.py")
    keep = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(keep)
    assert keep.main([]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^torch==\d", told, re.MULTILINE) and re.search(r"^numpy==\d", told, re.MULTILINE)
    file = tmp_path / "keep.txt"
    file.write_text(told, encoding="utf-8")
    assert keep.main(["--check", str(file)]) == 0
    file.write_text(told.replace("torch==", "torch==0."), encoding="utf-8")
    assert keep.main(["--check", str(file)]) == 1 and "torch==0." in capsys.readouterr().err
