from dataclasses import replace

import pytest
from training_fakes import make_run, with_run

from nvlm_train.engine.manifest import Manifest
from nvlm_train.errors import CheckpointError
from nvlm_train.training.start import Start, checkpoints_of, resume_point, start_of


def checkpoint(run, step):
    """A complete checkpoint without any files but its manifest."""
    folder = checkpoints_of(run) / f"step-{step:08d}"
    folder.mkdir(parents=True)
    Manifest(save_id="x", step=step, stage=run.stage, cursor=step * run.train.global_batch, fingerprint={}, config={}, files={},
             contents={}).write(folder)
    return folder


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / "run", stage=stage, steps=10) for stage in ("pretrain", "sft")]


def test_auto_takes_the_newest_checkpoint_of_the_furthest_stage(runs):
    assert resume_point(runs) is None
    checkpoint(runs[0], 4)
    newest = checkpoint(runs[0], 8)
    assert resume_point(runs) == (0, Start(newest, True, 8, 16))
    sft = checkpoint(runs[1], 2)
    assert resume_point(runs) == (1, Start(sft, True, 2, 4))
    assert resume_point(runs[:1]) == (0, Start(newest, True, 8, 16)), "a job of pretraining alone has no later stage"


def test_never_looks_at_nothing(runs):
    checkpoint(runs[0], 4)
    assert resume_point([with_run(run, resume="never") for run in runs]) is None


def test_a_path_names_the_checkpoint_also_of_another_run(runs, tmp_path):
    older = checkpoint(runs[1], 2)
    checkpoint(runs[1], 6)
    elsewhere = [with_run(run, resume=str(older), dir=str(tmp_path / "other")) for run in runs]
    assert resume_point(elsewhere) == (1, Start(older, True, 2, 4))


def test_a_path_of_another_stage_says_what_to_do(runs):
    path = checkpoint(runs[0], 4)
    with pytest.raises(CheckpointError, match=r"of pretrain, but this job trains sft: add stage=pretrain, or .*init="):
        resume_point([with_run(runs[1], resume=str(path))])


def test_another_batch_size_cannot_go_on_with_the_same_cursor(runs):
    checkpoint(runs[0], 4)
    larger = [replace(run, train=replace(run.train, global_batch=8)) for run in runs]
    with pytest.raises(CheckpointError, match="used 8 samples in 4 steps, which is not train.global_batch=8 a step"):
        resume_point(larger)


def test_fine_tuning_starts_from_the_end_of_pretraining_in_the_same_job(runs):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        start_of(runs[1], runs[0])
    checkpoint(runs[0], 8)
    last = checkpoint(runs[0], 10)
    start = start_of(runs[1], runs[0])
    assert start == Start(last, False, 0, 0)
    assert start.told(runs[1]) == f"sft: starts from the weights of {last}, with a fresh optimizer"


def test_fine_tuning_alone_starts_from_the_backbones_and_says_so(runs):
    checkpoint(runs[0], 10)
    model = runs[1].model
    run = replace(runs[1], model=replace(model, language=replace(model.language, weights="qwen.safetensors")))
    assert start_of(run, None) == Start()
    assert start_of(run, None).told(run) == (
        "sft: starts from the backbones (vision encoder with random weights, language model from qwen.safetensors) "
        "with a fresh connector")


def test_init_names_another_start(runs):
    last = checkpoint(runs[0], 10)
    run = replace(runs[1], init=str(last.parents[2]))
    assert start_of(run, None) == Start(last, False, 0, 0)


def test_a_resumed_start_tells_where_it_goes_on(runs):
    assert Start(None, True, 3, 6).told(runs[1]).startswith("sft: goes on after step 3 of 10")
