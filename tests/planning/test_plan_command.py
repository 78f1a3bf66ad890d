"""`nvlm plan` as it is typed: what it prints, when it refuses, how long it takes."""

import json
import subprocess
import sys
import time

import pytest

from data_prep import tiny
from nvlm_train import cli
from nvlm_train.config.compose import compose
from nvlm_train.planning.devices import GPUS
from nvlm_train.planning.memory import rank_memory

BIG = ["plan", "recipe=nvlm_d_72b", "stage=sft", "nodes=16"]


def told(capsys, *words, code=0):
    """(standard output, standard error) of a plan that ends with this exit code."""
    assert cli.main(["plan", *words]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_a_plan_says_memory_time_and_what_would_be_faster(capsys):
    out, err = told(capsys, *BIG[1:])
    for what in ("nvlm_d_72b, sft, 16 nodes, 128 H100", "element-wise compiled, Adam torch, weight gradients product, fp8 none", "memory of a rank", "operations of a step", "GB that a rank sends",
                 "GPU-hours", "assumed", "layouts that fit, fastest first", "to be typed"):
        assert what in out
    assert not err and "\x1b" not in out      # plain where nobody watches


def test_json_holds_what_the_tables_show(capsys):
    out, _ = told(capsys, *BIG[1:], "--json")
    stage = json.loads(out)["sft"]
    own = stage["own"]
    assert stage["fits"] and stage["problem"] is None
    assert own["gpus"] == 128 and own["replicas"] == 4 and len(own["memory"]) == len(own["volumes"]) == 4
    assert sum(rank["layers"][0][1] - rank["layers"][0][0] for rank in own["memory"]) == 80
    assert own["gpu_hours"] == pytest.approx(own["step_s"] * own["steps"] * 128 / 3600)
    useful = sum(part["useful"] for part in own["flops"].values())
    assert useful < sum(part["done"] for part in own["flops"].values())
    assert own["mfu"] == pytest.approx(useful / (own["step_s"] * 128 * 989e12))
    assert sum(own["parts"].values()) == pytest.approx(own["step_s"], abs=0.02)
    assert stage["proposals"] == sorted(stage["proposals"], key=lambda one: one["step_s"])


def test_what_does_not_fit_is_refused_with_the_rank_and_what_would(capsys):
    _, err = told(capsys, "recipe=nvlm_x_72b", "stage=sft", "nodes=4", code=2)
    assert "pipeline rank 0 of 1 is the fullest and needs" in err and "H100 has 79.1 GiB" in err
    words = ["recipe=nvlm_x_72b", "stage=sft", *err.split("The fastest that does: ")[1].split()]
    run = compose(words)[0]
    limit = GPUS["h100"].memory
    assert all(rank_memory(run, 32, rank).total <= limit for rank in range(run.layout.pipeline))
    assert rank_memory(compose(words[:2])[0], 32, 0).total > limit


def test_what_the_layout_would_have_to_compute_again_is_named(capsys):
    words = ["recipe=nvlm_d_72b", "stage=sft", "layout.tensor=4", "layout.pipeline=2", "layout.first_stage_layers=null"]
    _, err = told(capsys, *words, "data.pack_tokens=8192", "data.pack_tiles=28", "nodes=16", code=2)
    setting = err.split("This layout fits with ")[1].split(". The fastest that does")[0]
    run = compose([*words, "data.pack_tokens=8192", "data.pack_tiles=28", *setting.split()])[0]
    assert all(rank_memory(run, 128, rank).total <= GPUS["h100"].memory for rank in range(2))


def test_what_the_gpu_cannot_compute_is_refused(capsys):
    _, err = told(capsys, *BIG[1:], "gpu=a100", "model.fp8=current", code=2)
    assert "model.fp8=current needs compute capability 8.9 or higher" in err and "model.fp8=none" in err


def test_another_engine_is_not_reckoned_with(capsys):
    _, err = told(capsys, "recipe=nvlm_d_2b", "engine=deepspeed", code=2)
    assert "knows what engine=megatron needs and takes, not engine=deepspeed" in err


def test_where_no_layout_fits_more_nodes_are_named(capsys):
    _, err = told(capsys, "recipe=nvlm_d_34b", "stage=pretrain", "nodes=1", "gpus_per_node=1", code=2)
    assert "No layout of 1 nodes fits; on 2 this does: stages.pretrain.layout.tensor=1" in err


def test_a_cluster_that_does_not_divide(capsys):
    out, err = told(capsys, "recipe=nvlm_d_2b", "stage=sft", "layout.tensor=2", "gpus_per_node=3", code=2)
    assert "3 processes cannot be split into groups of 2" in err and "The fastest that does: stages.sft.layout.tensor=1" in err
    assert "layouts that fit" in out


@pytest.mark.parametrize(("words", "said"), [
    (["gpu=h10"], "gpu=h10: not in the table; did you mean h100? (known: a100, h100, h200, b200)"),
    (["nodes=0"], "nodes=0 must be at least 1"),
    (["nodes=two"], "nodes: expected a whole number, got 'two'"),
    (["assume.tile=3"], "assume.tiles"),
    (["assume.text_share=1.5"], "assume.text_share=1.5 must lie between 0 and 1"),
    (["assume.tiles=0"], "assume.tiles=0 must be at least 1"),
    (["recipe=nvlm_d_73b"], "nvlm_d_72b"),
    (["layout.tensor=3"], "layout.tensor=3 must divide"),
    (["checkpoint=runs/x"], "checkpoint"),
])
def test_bad_words(capsys, words, said):
    _, err = told(capsys, "recipe=nvlm_d_72b", "stage=sft", *words, code=2)
    assert said in err


def test_what_is_assumed_can_be_said(capsys):
    out, _ = told(capsys, "recipe=nvlm_d_2b", "stage=sft", "gpus_per_node=1", "assume.tiles=7", "assume.text_share=0", "--json")
    stage = json.loads(out)["sft"]
    assert stage["own"]["sample"]["tiles"] == 7 and any("tiles of a picture: 7" in sentence for sentence in stage["assumed"])


def test_shards_are_read_where_they_are(capsys):
    folders = {name: tiny.resolve(f"builtin:tiny/{name}") for name in ("sft", "text")}
    tiny.ensure("tiny")
    words = ["recipe=nvlm_d_tiny", "stage=sft", "gpus_per_node=1", f"data.blend.images.path={folders['sft']}",
             f"data.blend.text.path={folders['text']}"]
    out, _ = told(capsys, *words, "--json")
    stage = json.loads(out)["sft"]
    assert stage["assumed"] == []
    assert 100 < stage["own"]["sample"]["tokens"] < 160 and 3 < stage["own"]["sample"]["tiles"] < 4
    assert "drawn from the stage's own shards" in told(capsys, *words)[0]


def test_both_stages_in_ten_seconds_without_megatron():
    """Of processor time, python's start included: other processes may be at work here."""
    code = ("import sys, time; from nvlm_train.cli import main; code = main(['plan', 'recipe=nvlm_h_72b', 'nodes=16']); "
            "assert 'megatron' not in sys.modules; print(time.process_time(), file=sys.stderr); sys.exit(code)")
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert min(float(done.stderr.split()[-1]), time.monotonic() - start) < 10
