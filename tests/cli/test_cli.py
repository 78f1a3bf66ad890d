"""The command line as a person meets it: real processes, from a folder that is not the checkout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nvlm_train import cli
from nvlm_train.config.compose import compose, to_yaml
from nvlm_train.errors import NvlmError
from nvlm_train.training.preemption import Preempted
from nvlm_train.verbs import Verb

ROOT = Path(cli.__file__).resolve().parents[1]
TINY = "recipe=nvlm_d_tiny"


def nvlm(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    return process([sys.executable, "-m", "nvlm_train", *words], cwd, **env)


def process(command: list[str] | str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, check=False, shell=isinstance(command, str), cwd=cwd, capture_output=True, text=True,
                          timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT), **env})


def test_typo_ends_with_the_nearest_key_and_no_traceback(tmp_path):
    done = nvlm("train", TINY, "layuot.tensor=2", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "nvlm: layuot.tensor: unknown key; did you mean layout.tensor?\n"
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


def test_only_the_first_rank_tells_a_configuration_error(tmp_path):
    done = nvlm("train", TINY, "layuot.tensor=2", cwd=tmp_path, RANK="1")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_show_config_prints_json_of_one_stage_and_of_all(tmp_path):
    one = json.loads(nvlm("show-config", "--json", TINY, "stage=sft", "train.lr=0.5", cwd=tmp_path).stdout)
    assert (one["stage"], one["train"]["lr"]) == ("sft", 0.5)
    both = json.loads(nvlm("show-config", TINY, "--json", cwd=tmp_path).stdout)
    assert list(both) == ["pretrain", "sft"]


def test_starting_up_loads_neither_torch_nor_megatron(tmp_path):
    code = ("import sys; from nvlm_train.cli import main; main(['show-config', 'recipe=nvlm_d_tiny']); "
            "main(['train', '--dry-run', 'recipe=nvlm_d_tiny']); assert not {'torch', 'megatron', 'wandb'} & set(sys.modules)")
    done = process([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_stops_early_is_no_error(tmp_path):
    done = process(f"{sys.executable} -m nvlm_train show-config {TINY} | head -1", tmp_path)
    assert done.stdout == "pretrain:\n" and done.stderr == ""


def test_show_config_reads_a_run_directory(tmp_path, capsys):
    step = tmp_path / "run" / "checkpoints" / "pretrain" / "step-00000030"
    step.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(compose([TINY, "train.seed=7"])), encoding="utf-8")
    assert cli.main(["show-config", "--json", f"checkpoint={step}", "run.device=cpu"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["stage"], shown["train"]["seed"], shown["run"]["device"]) == ("pretrain", 7, "cpu")
    assert cli.main(["show-config", "--json", f"checkpoint={tmp_path / 'run'}"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["pretrain", "sft"]


def test_dry_run_tells_both_stages_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--dry-run", "recipe=nvlm_d_72b"]) == 0
    told = capsys.readouterr().out
    assert "nvlm_d_72b, pretrain" in told and "40,960,000 samples" in told and "a multiple of 8 processes" in told
    assert "nvlm_d_72b, sft" in told and "5,120,000 samples" in told and "a multiple of 32 processes" in told
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_verb_and_every_verb_has_help(capsys):
    assert cli.main([]) == 0
    told = capsys.readouterr().out
    assert all(f"\n  {name} " in told for name in cli.VERBS)
    for name in cli.VERBS:
        assert cli.main([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"nvlm {name}")
    assert len(cli.VERBS) >= 6


@pytest.mark.parametrize(("words", "sentence"), [
    (["trian", TINY], "trian: no such verb; did you mean train?"),
    (["train", "--dryrun", TINY], "--dryrun: train has no such flag; did you mean --dry-run?"),
    (["train"], "no recipe given: add recipe=NAME, one of "),
    (["train", "recipe=nvlm_d_tny"], "recipe=nvlm_d_tny: there is no such recipe; did you mean nvlm_d_tiny?"),
    (["train", TINY, "prompt=hello"], "belong to eval and generate"),
    (["generate", "prompt=hello"], "no checkpoint given"),
    (["generate", "checkpoint=nowhere", "prompt=hello"], "checkpoint=nowhere: there is no such folder"),
    (["generate", "checkpoint=.", "prompt=hello"], "no config.yaml there or above"),
    (["generate", "checkpoint=.", TINY], "no question given"),
    (["generate", "checkpoint=.", TINY, "prompt=What, then?", "image=absent.png"], "image=absent.png: there is no such file"),
    (["eval", "checkpoint=.", TINY, "eval.limt=3"], "eval.limt: unknown key; did you mean eval.limit?"),
    (["eval", "checkpoint=.", TINY, "eval.limit=few"], "eval.limit: expected a whole number, got 'few'"),
    (["eval", "checkpoint=.", TINY, "eval.limit=-1"], "eval.limit=-1 must be at least 0"),
    (["doctor", "all"], "nvlm doctor takes no settings"),
    (["compare", "designs=nvlm_d_tiny"], "it takes two to compare"),
    (["compare", "designs=nvlm_d_tiny,nvlm_x_tny"], "nvlm_x_tny: recipe=nvlm_x_tny: there is no such recipe; did you mean nvlm_x_tiny?"),
    (["compare", "designs=nvlm_d_tiny,nvlm_d_demo"], "train.steps (pretrain) is 30 in nvlm_d_tiny, 200 in nvlm_d_demo"),
])
def test_wrong_command_lines(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    told = capsys.readouterr()
    assert sentence in told.err and told.out == ""


def test_verbs_hand_over_runs_and_options(tmp_path, monkeypatch):
    """With stand-ins for the modules that train and evaluate: what reaches them."""
    got = {}
    stages = type(sys)("nvlm_train.training.stages")
    stages.train_all = lambda runs: got.update(train=runs)
    commands = type(sys)("nvlm_train.evaluation.commands")
    commands.eval_command = lambda runs, options: got.update(eval=(runs, options))
    asking = type(sys)("nvlm_train.evaluation.generate_command")
    asking.generate_command = lambda runs, options: got.update(generate=(runs, options))
    monkeypatch.setitem(sys.modules, "nvlm_train.training.stages", stages)
    monkeypatch.setitem(sys.modules, "nvlm_train.evaluation.commands", commands)
    monkeypatch.setitem(sys.modules, "nvlm_train.evaluation.generate_command", asking)
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)

    assert cli.main(["train", TINY, "train.steps=9"]) == 0
    assert got["train"] == compose([TINY, "train.steps=9"])
    words = [TINY, "stage=sft", "checkpoint=runs/x", "eval.limit=5"]
    assert cli.main(["eval", "--json", *words]) == 0
    assert got["eval"] == (compose([TINY, "stage=sft"]), {
        "checkpoint": "runs/x", "image": [], "prompt": None, "data": None, "limit": 5, "max_new_tokens": 64,
        "out": None, "json": True})
    assert cli.main(["generate", *words, "image=a.png", "image=b.png", "prompt=Which is red, a or b?"]) == 0
    options = got["generate"][1]
    assert (options["image"], options["prompt"], options["json"]) == (["a.png", "b.png"], "Which is red, a or b?", False)


def test_compare_tells_what_it_would_train_and_hands_on_its_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["compare", "designs=nvlm_d_tiny,nvlm_h_tiny", "seeds=3,4", "train.lr=0.5"]
    assert cli.main([*words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("4 trainings") and "nvlm train data.features=off train.lr=0.5 recipe=nvlm_h_tiny train.seed=4" in told
    assert list(tmp_path.iterdir()) == []

    got = {}
    command = type(sys)("nvlm_train.comparison.command")
    command.compare_command = lambda asked, shared, dry_run: got.update(asked=asked, shared=shared) or 1
    monkeypatch.setitem(sys.modules, "nvlm_train.comparison.command", command)
    assert cli.main(words) == 1
    assert (list(got["asked"].designs), got["asked"].seeds, got["shared"]) == (["nvlm_d_tiny", "nvlm_h_tiny"], (3, 4),
                                                                               ["train.lr=0.5"])


def test_errors_for_people_end_with_one_and_others_with_a_traceback(monkeypatch, capsys):
    def refuse(words, flags):
        raise NvlmError("the disk is full\nfree 3 GiB")

    monkeypatch.setitem(cli.VERBS, "train", Verb(refuse, "", ""))
    assert cli.main(["train"]) == 1
    assert capsys.readouterr().err == "nvlm: the disk is full\n      free 3 GiB\n"

    def stop(words, flags):
        raise Preempted("stopped as told")

    monkeypatch.setitem(cli.VERBS, "train", Verb(stop, "", ""))
    assert cli.main(["train"]) == 75

    def stumble(words, flags):
        raise ZeroDivisionError

    monkeypatch.setitem(cli.VERBS, "train", Verb(stumble, "", ""))
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])
