"""Measured times of parts in place of modelled ones: what they change, for which runs they serve, and what `nvlm plan` makes of the file."""

import json
from dataclasses import replace

import pytest

from nvlm_train import cli
from nvlm_train.config.compose import compose
from nvlm_train.config.request import Assume
from nvlm_train.errors import ConfigError
from nvlm_train.planning.devices import GPUS, Cluster
from nvlm_train.planning.layer_times import (
    ENCODER,
    ENCODER_LAYER,
    LAYERS,
    LayerTimes,
    Timed,
    read_layer_times,
    refuse_unlike,
    settings_of,
    write_layer_times,
)
from nvlm_train.planning.plan import Plan, bench_of
from nvlm_train.planning.row_time import layer_kinds, row_costs
from nvlm_train.planning.samples import assumed_samples, sample_of
from nvlm_train.planning.search import search
from nvlm_train.planning.step import row_of

DGX = Cluster(GPUS["h100"], 16, 8)
WORDS = ("recipe=nvlm_d_72b", "stage=sft")


def run_of(*words):
    return compose([*words, "model.tokenizer=tiny"])[0]


def without_messages(cost) -> float:
    return cost.work - cost.waiting


def as_modelled(run, factor=1.0, **factors) -> LayerTimes:
    """A file whose seconds are the model's own, times a factor: all parts' or one's."""
    place = bench_of(run, DGX, [sample_of(run, 7, 200, 100)]).fabric(run).place(run.layout)
    row = row_of([sample_of(run, 7, 200, 100)] * 2, run.data.pack_tokens)
    costs = row_costs(run, place, row)

    def timed(part, name, share=1.0):
        times = factors.get(name.replace(" ", "_"), factor)
        return Timed(share * times * without_messages(part.forward), share * times * without_messages(part.backward))

    each = 1 / run.model.vision.layers
    seconds = {ENCODER: timed(costs.vision, "encoder", each), ENCODER_LAYER: timed(costs.vision, "encoder", each),
               "connector": timed(costs.connector, "connector"), "embedding": timed(costs.embedding, "embedding"),
               "output": timed(costs.after, "output")}
    seconds |= {LAYERS[kind]: timed(layer, LAYERS[kind]) for kind, layer in zip(layer_kinds(run), costs.layers, strict=True)}
    return LayerTimes("NVIDIA H100 80GB HBM3", "2.11.0", "0.16.1", settings_of(run, "bf16"), row, seconds, "times.json")


def plan(run, times=None) -> Plan:
    return Plan(run, bench_of(run, DGX, assumed_samples(run, Assume(), 400), times))


@pytest.mark.parametrize("words", [WORDS, ("recipe=nvlm_x_34b", "stage=pretrain"), ("recipe=nvlm_h_34b", "stage=sft")])
def test_the_models_own_times_change_nothing(words):
    """Issuing kernels is in measured times, not beside them: at these sizes no piece of the model waits for it."""
    run = run_of(*words)
    assert plan(run, as_modelled(run)).time.seconds == pytest.approx(plan(run).time.seconds, rel=1e-9)


def test_parts_that_are_slower_make_their_stages_slower():
    """Of stages whose work is layers alone, that work doubles but for messages; the first gains its encoder's seconds on top."""
    run = run_of(*WORDS)
    before, after = plan(run).time, plan(run, as_modelled(run, layer=2.0)).time
    waiting = before.stages.sum(1).waiting
    assert after.pipeline.busy[1] - waiting == pytest.approx(2 * (before.pipeline.busy[1] - waiting), rel=1e-9)
    encoder = plan(run, as_modelled(run, encoder=3.0)).time
    assert encoder.pipeline.busy[1:] == pytest.approx(before.pipeline.busy[1:])
    assert encoder.pipeline.busy[0] > before.pipeline.busy[0]
    assert encoder.pipeline.balance < before.pipeline.balance
    assert encoder.update_s == before.update_s and encoder.done == before.done


def test_another_row_is_reckoned_by_what_the_model_says_of_both():
    run = run_of(*WORDS)
    place = bench_of(run, DGX, [sample_of(run, 7, 200, 100)]).fabric(run).place(run.layout)
    times = as_modelled(run, 1.5)
    other = row_of([sample_of(run, 3, 90, 30)], run.data.pack_tokens)
    modelled, found = row_costs(run, place, other), times.costs(run, place, other)
    for name in ("vision", "connector", "embedding", "after"):
        ours, theirs = getattr(found, name).forward, getattr(modelled, name).forward
        assert without_messages(ours) == pytest.approx(1.5 * without_messages(theirs)), name
        assert (ours.waiting, ours.flops, ours.sent, ours.calls) == (theirs.waiting, theirs.flops, theirs.sent, 0.0)
    assert without_messages(found.layers[5].backward) == pytest.approx(1.5 * without_messages(modelled.layers[5].backward))
    nothing = row_of([sample_of(run, 0, 90, 30)], run.data.pack_tokens)
    assert times.costs(run, place, nothing).vision.forward.work == 0


@pytest.mark.parametrize(("words", "said"), [
    (("layout.tensor=4",), "layout.tensor was 8 when measured and is 4 here"),
    (("model.recompute=none",), "model.recompute was selective when measured and is none here"),
    (("model.dtype=fp32",), "model.dtype was bf16 when measured and is fp32 here"),
    (("data.pack_tokens=8192",), "data.pack_tokens was 4096 when measured and is 8192 here"),
    (("model.language.ffn=8192",), "model.language.ffn was 29568 when measured and is 8192 here"),
    (("stage=pretrain",), "stage was sft when measured and is pretrain here"),
])
def test_what_was_measured_otherwise_is_refused_with_both_values(words, said):
    run = run_of(*WORDS)
    with pytest.raises(ConfigError) as refused:
        refuse_unlike(as_modelled(run), run_of(*WORDS[: 1 if "stage" in words[0] else 2], *words), "H100")
    assert said in str(refused.value) and "times.json" in str(refused.value)


def test_another_device_and_missing_parts_are_refused_and_splits_are_not():
    run = run_of("recipe=nvlm_h_34b", "stage=sft")
    times = as_modelled(run)
    with pytest.raises(ConfigError, match="measured on NVIDIA H100 80GB HBM3, and the plan is for A100"):
        refuse_unlike(times, run, "A100")
    lacking = replace(times, seconds={name: each for name, each in times.seconds.items() if name != "reading layer"})
    with pytest.raises(ConfigError, match="reading layer was not measured"):
        refuse_unlike(lacking, run, "H100")
    split = run_of("recipe=nvlm_h_34b", "stage=sft", "layout.pipeline=4", "layout.first_stage_layers=6", "model.cross_attention.every=10")
    refuse_unlike(times, split, "H100")


@pytest.mark.parametrize("words", [(), ("model.recompute=none", "model.recompute_parts=[mlp]")])
def test_the_search_stays_with_what_was_measured(words):
    run = run_of(*WORDS, *words)
    bench = bench_of(run, DGX, assumed_samples(run, Assume(), 400), as_modelled(run))
    best = search(run, bench).best
    assert len(best) > 1
    for found in best:
        assert not bench.memo.measured.lacks(found.run, "bf16")


def test_the_file_comes_back_and_others_are_refused(tmp_path):
    times = as_modelled(run_of(*WORDS))
    write_layer_times(times, tmp_path / "times.json")
    assert read_layer_times(str(tmp_path / "times.json")) == replace(times, path=str(tmp_path / "times.json"))
    for content in ("{}", "[]", "no json", json.dumps({"version": 1, "settings": {}, "row": {"tokens": 1}, "seconds": {}})):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(ConfigError, match="is no file of benchmarks/layers.py"):
            read_layer_times(str(tmp_path / "other.json"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_layer_times(str(tmp_path / "none.json"))


def test_a_plan_takes_the_file_tells_its_source_and_draws(tmp_path, capsys):
    words = [*WORDS, "model.tokenizer=tiny", "nodes=16", f"timeline={tmp_path}/step.svg"]
    write_layer_times(as_modelled(run_of(*WORDS), encoder=2.0), tmp_path / "times.json")
    assert cli.main(["plan", *words]) == 0
    modelled = capsys.readouterr().out
    assert cli.main(["plan", *words, f"layer_times={tmp_path}/times.json"]) == 0
    measured, told = capsys.readouterr()
    assert "measured on NVIDIA H100 80GB HBM3, torch 2.11.0" in measured and "modelled: messages of every group" in measured
    assert "measured on" not in modelled and modelled.split("step ")[1] != measured.split("step ")[1]
    assert f"drawn: {tmp_path}/step.svg" in told
    assert "Layer times measured on NVIDIA H100 80GB HBM3" in (tmp_path / "step.svg").read_text()
    assert cli.main(["plan", *words, "layout.tensor=4", f"layer_times={tmp_path}/times.json"]) == 2
    assert "layout.tensor was 8 when measured and is 4 here" in capsys.readouterr().err
    assert cli.main(["plan", *words[:4], "timeline=step.pdf"]) == 2
    assert "timeline=step.pdf must end in .svg" in capsys.readouterr().err
