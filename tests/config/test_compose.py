"""Overrides: which value wins, how maps and deletions behave, and that nothing is written."""

import pytest

from nvlm_train.config.compose import adjust, compose
from nvlm_train.errors import ConfigError

TINY = "recipe=nvlm_d_tiny"


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return caught.value.problems


def one(*overrides: str):
    (run,) = compose([TINY, *overrides])
    return run


def test_stage_chooses_what_runs():
    assert [run.stage for run in compose([TINY])] == ["pretrain", "sft"]
    assert [run.stage for run in compose([TINY, "stage=all"])] == ["pretrain", "sft"]
    assert one("stage=sft").stage == "sft"
    assert problems(TINY, "stage=stf") == ["stage: 'stf' is none of pretrain, sft, all; did you mean sft?"]


def test_yaml_stage_values_beat_shared_ones():
    pretrain, sft = compose([TINY])
    assert (pretrain.train.beta2, sft.train.beta2) == (0.95, 0.98)
    assert pretrain.train.beta1 == sft.train.beta1 == 0.9
    assert pretrain.train.weight_decay == sft.train.weight_decay == 0.1


def test_bare_override_beats_yaml_stage_values_everywhere():
    pretrain, sft = compose([TINY, "train.beta2=0.5", "data.max_tokens=200", "layout.tensor=2", "model.tags.kind=2d_bbox"])
    for run in (pretrain, sft):
        assert (run.train.beta2, run.data.max_tokens, run.layout.tensor, run.model.tags.kind) == (0.5, 200, 2, "2d_bbox")
    assert (pretrain.train.steps, sft.train.steps) == (30, 40)


@pytest.mark.parametrize("order", [1, -1])
def test_explicit_stage_override_beats_both_in_any_order(order):
    given = ["stages.sft.train.steps=7", "train.steps=9"][::order]
    pretrain, sft = compose([TINY, *given])
    assert (pretrain.train.steps, sft.train.steps) == (9, 7)


def test_the_last_of_two_equal_overrides_wins():
    assert one("stage=sft", "train.steps=8", "train.steps=9").train.steps == 9


def test_keys_absent_from_yaml_need_no_plus():
    run = one("stage=sft", "train.max_bad_steps=9", "+run.keep_last=4", "++data.workers=1", "model.vision.weights=vit.bin")
    assert (run.train.max_bad_steps, run.run.keep_last, run.data.workers, run.model.vision.weights) == (9, 4, 1, "vit.bin")


def test_group_given_as_a_map_changes_only_what_it_names():
    run = one("stage=sft", "train={steps:12,lr:2e-3}", "stages={sft:{data:{max_tokens:99}}}")
    assert (run.train.steps, run.train.lr, run.train.beta2, run.data.max_tokens) == (12, 2e-3, 0.98, 99)


def test_blend_entries_are_added_by_name_and_replaced_as_a_whole():
    assert set(one("stage=sft", "data.blend.mine.path=shards").data.blend) == {"images", "text", "mine"}
    blend = one("stage=sft", "data.blend={mine:{path:shards,weight:2,epochs:1}}").data.blend
    assert list(blend) == ["mine"]
    assert (blend["mine"].path, blend["mine"].weight, blend["mine"].epochs) == ("shards", 2.0, 1.0)


def test_names_in_a_map_of_values_may_hold_dots():
    run = one("stage=sft", "train.lr_multipliers.language.*.norm*=0.5", "stages.sft.train.lr_multipliers.vision.blocks=2",
              "train.lr_multipliers.connector=3")
    assert run.train.lr_multipliers == {"language.*.norm*": 0.5, "vision.blocks": 2.0, "connector": 3.0}


def test_deletion_takes_a_source_out():
    pretrain, sft = compose([TINY, "~data.blend.text"])
    assert set(pretrain.data.blend) == set(sft.data.blend) == {"images"}
    assert set(one("stage=sft", "~stages.sft.data.blend.text").data.blend) == {"images"}
    assert problems(TINY, "~data.blend.txet") == ["~data.blend.txet: there is nothing of that name to delete"]
    assert problems(TINY, "~stages.pretrain.data.blend.text") == [
        "~stages.pretrain.data.blend.text: there is nothing of that name to delete"]


def test_parts_can_be_exchanged():
    assert one("stage=sft", "vision=tiny_6b").model.vision.heads == 5
    assert problems(TINY, "vision=tini")[0].startswith("vision=tini: there is no such vision; did you mean tiny?")


def test_text_settings_are_taken_literally():
    assert one("stage=sft", "run.dir=2026").run.dir == "2026"
    assert one("stage=sft", "run.dir=a=b,c(1)").run.dir == "a=b,c(1)"
    assert one("stage=sft", "run.wandb=off").run.wandb == "off"
    assert one("stage=sft", "data.system_prompt=null").data.system_prompt is None
    assert one("stage=sft", "init='runs/a b'").init == "runs/a b"


def test_references_are_resolved_after_overrides(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/big")
    assert one("stage=sft").run.dir == "runs/nvlm_d_tiny"
    run = one("stage=sft", "run.dir=${oc.env:SCRATCH}/${recipe}/${train.steps}", "train.steps=11")
    assert run.run.dir == "/big/nvlm_d_tiny/11"
    assert one("stage=sft", "run.dir=${oc.env:NVLM_ABSENT,here}/x").run.dir == "here/x"
    assert "NVLM_ABSENT" in problems(TINY, "run.dir=${oc.env:NVLM_ABSENT}")[0]
    assert "train.stepz" in problems(TINY, "run.dir=${train.stepz}")[0]


@pytest.mark.parametrize("text", ["${oc.decode:1}", "${hydra:runtime.cwd}", "${now:%Y}", "${oc.create:{}}", "x${ anything:1}"])
def test_other_resolvers_are_refused(text):
    assert "is refused" in problems(TINY, f"run.dir='{text}'")[0]


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY"])
def test_secrets_of_the_environment_are_refused(name, monkeypatch):
    monkeypatch.setenv(name, "hunter2")
    (problem,) = problems(TINY, f"data.blend.mine.path=https://${{oc.env:{name}}}@host/x")
    assert "secret" in problem and "hunter2" not in problem


@pytest.mark.parametrize("key", ["_target_", "model._target_", "data.blend._target_.path", "stages.sft.train._partial_"])
def test_keys_that_would_name_code_are_refused(key):
    (problem,) = problems(TINY, f"{key}=os.system")
    assert "unknown key" in problem or "never name code" in problem


@pytest.mark.parametrize("text", ["train.lr=1,2", "train.lr=glob(*)", "train.lr", "train.steps=[1"])
def test_what_cannot_be_read_is_named(text):
    (problem,) = problems(TINY, text)
    assert problem.startswith(f"{text}: cannot be read as key=value")


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compose([TINY])
    assert list(tmp_path.iterdir()) == []


def test_composing_twice_gives_equal_and_independent_runs():
    first, second = compose([TINY, "train.steps=50"]), compose([TINY])
    assert (first[0].train.steps, second[0].train.steps) == (50, 30)
    assert compose([TINY]) == second


def test_adjust_lays_overrides_over_resolved_runs():
    runs = compose([TINY, "train.steps=50", "run.dir=somewhere"])
    changed = adjust(runs, ["run.device=cpu", "stages.sft.train.lr=0.5"])
    assert [run.run.device for run in changed] == ["cpu", "cpu"]
    assert [run.train.steps for run in changed] == [50, 50]
    assert (changed[0].train.lr, changed[1].train.lr) == (2e-3, 0.5)
    assert adjust(runs, []) == runs
    with pytest.raises(ConfigError, match="did you mean run.device"):
        adjust(runs, ["run.devise=cpu"])
