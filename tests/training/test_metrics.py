import json
from dataclasses import replace

import pytest
import torch
from training_fakes import MODEL, Collector, FakeEngine, make_batches, make_row, make_run, with_run

from nvlm_train.config.schema import CrossAttention
from nvlm_train.contracts import Slot, StepBatch
from nvlm_train.model.accounting import Parts, SampleWork, useful_flops
from nvlm_train.training.logs import METRICS, SAMPLES, Logs, read_rows
from nvlm_train.training.loop import train
from nvlm_train.training.metrics import Gathered, Recorder, Share, sample_work
from nvlm_train.training.schedule import lr_at


def record_run(run, engine, sinks, checks=(), flush_at=lambda step: False, devices=1, peak=None, **batches):
    train(run, engine, make_batches(run, **batches), [Recorder(run, engine, sinks, checks, flush_at, ["here"] * devices, peak)])


def test_work_of_a_row_is_counted_per_sample():
    row = make_row(lengths=(6, 4, 3), tiles=((0, 2), (), (1,)), supervised=2)
    assert sample_work(row, 4) == [SampleWork(6, 2, 2), SampleWork(4, 0, 2), SampleWork(3, 1, 2)]
    assert sample_work(make_row(lengths=(), tiles=()), 4) == []


def test_memory_tiles_count_for_the_sample_that_reads_them():
    """Two tiles in memory and one in the sequence; text alone; a memory tile that nobody reads, one bound to one token."""
    row = replace(
        make_row(lengths=(6, 4, 3), tiles=((0, 1, 2), (), (0, 1)), supervised=1),
        tile_starts_n=torch.tensor([-1, -1, 1, -1, -1]),
        reads_s4=torch.tensor([[1, 3, 0, 1], [3, 6, 0, 2], [11, 12, 2, 3]]),
        memory_tags_mG=torch.tensor([[7, 7, 7], [7, 7, -1], [-1, -1, -1], [7, -1, -1]]),
    )
    first = SampleWork(6, 3, 1, memory_tokens=7 + 6, readers=2 + 3, pairs=2 * 7 + 3 * 13)
    last = SampleWork(3, 2, 1, memory_tokens=4, readers=1, pairs=1 * 4)
    assert sample_work(row, 4) == [first, SampleWork(4, 0, 1), last]


def test_untagged_memory_is_its_visual_tokens():
    row = replace(make_row(lengths=(5,), tiles=((0,),)), tile_starts_n=torch.tensor([-1]), reads_s4=torch.tensor([[1, 5, 0, 1]]),
                  memory_tags_mG=torch.zeros(1, 0, dtype=torch.long))
    assert sample_work(row, 4) == [SampleWork(5, 1, 2, memory_tokens=4, readers=4, pairs=16)]


def test_a_row_of_figures_adds_up():
    run, sink = make_run(steps=1), Collector()
    record_run(run, FakeEngine(), [sink], refused={1: "too_long"}.get, devices=2, peak=1e9)
    row, slots = sink.records[0].row, sink.records[0].slots
    assert (row["stage"], row["step"], row["loss"], row["grad_norm"], row["lr"]) == ("pretrain", 1, 1.0, 0.5, lr_at(1, run.train))
    assert (row["samples"], row["refused"], row["tokens"], row["padded_tokens"], row["tiles"]) == (1, 1, 10, 16, 1)
    assert row["fill"] == 10 / 16 and row["imbalance"] == 0
    assert row["tokens_per_s"] * row["step_s"] == pytest.approx(10)
    assert row["padded_tokens_per_s"] * row["step_s"] == pytest.approx(16)
    assert row["samples_per_s"] * row["step_s"] == pytest.approx(1)
    assert 0 <= row["data_wait_s"] <= row["step_s"]
    assert row["source_losses"] == {"a": 1.0}
    assert row["devices"] == 2 and 2**-7 < row["peak_memory_gib"] < 1024      # a Python process holds more than 8 MiB
    flops = useful_flops(MODEL, {"connector"}, sample_work(make_row(), 4))
    assert row["tflops"]["total"] * row["step_s"] * 2e12 == pytest.approx(flops.total)
    assert row["tflops"]["vit"] * row["step_s"] * 2e12 == pytest.approx(flops.vision)
    assert row["mfu"] * row["step_s"] * 2e9 == pytest.approx(flops.total)
    assert [(slot.n, slot.refused) for slot in slots] == [(0, None), (1, "too_long")]
    assert sink.closed


def test_cross_attention_is_counted_apart():
    model = replace(MODEL, architecture="nvlm_x", cross_attention=CrossAttention(every=2))
    run, sink = make_run(steps=1, model=model), Collector()
    row = replace(make_row(), tile_starts_n=torch.tensor([-1]), reads_s4=torch.tensor([[1, 6, 0, 1]]),
                  memory_tags_mG=torch.zeros(1, 0, dtype=torch.long))
    batch = StepBatch(1, [row], [Slot(0, "s0", "a")], 2)
    train(run, FakeEngine(), [batch], [Recorder(run, FakeEngine(), [sink], (), lambda step: False, ["here"], None)])
    work = [SampleWork(6, 1, 2, memory_tokens=4, readers=5, pairs=20), SampleWork(4, 0, 2)]
    found, expected = sink.records[0].row, useful_flops(run.model, {"connector"}, work)
    assert found["tflops"]["cross_attention"] * found["step_s"] * 1e12 == pytest.approx(expected.cross_attention)
    assert expected.cross_attention > 0 and found["memory_tokens"] == 4
    assert sum(found["tflops"][part] for part in ("vit", "connector", "llm", "cross_attention")) == pytest.approx(
        found["tflops"]["total"])


def test_replicas_are_joined_and_model_parallel_ranks_count_once():
    """Three more ranks: one of this replica (which reads nothing), two of another."""
    run, sink = make_run(steps=1), Collector()
    other = Share([Slot(3, "s3", "a"), Slot(2, "s2", "a", "broken_image")], Parts(1e6, 2e6, 3e6), 0.25, memory_tokens=7)
    engine = FakeEngine(others=lambda value: [Gathered(None, [0.0], 2**60), Gathered([other], [0.0], 0), Gathered(None, [0.0], 0)])
    record_run(run, engine, [sink], devices=4)
    record = sink.records[0]
    assert [slot.n for slot in record.slots] == [0, 1, 2, 3]
    assert (record.row["samples"], record.row["refused"], record.row["data_wait_s"]) == (3, 1, 0.25)
    assert (record.row["memory_tokens"], record.row["devices"], record.row["peak_memory_gib"]) == (7, 4, 2**30)
    own = useful_flops(MODEL, {"connector"}, sample_work(make_row(), 4))
    assert record.row["tflops"]["total"] * record.row["step_s"] * 4e12 == pytest.approx(own.total + 6e6)
    assert record.row["mfu"] is None
    assert record.row["imbalance"] == pytest.approx(max(own.total, 6e6) / ((own.total + 6e6) / 2) - 1) and record.row["imbalance"] > 0.1


def test_gathering_waits_for_log_every_but_never_past_a_save_or_a_bad_step():
    run, sink, engine = with_run(make_run(steps=12), log_every=5), Collector(), None
    seen = []
    losses = [1.0] * 12
    losses[7] = float("inf")
    engine = FakeEngine(losses=losses, during=lambda step: seen.append(len(sink.records)))
    record_run(run, engine, [sink], flush_at=lambda step: step == 3)
    assert seen == [0, 0, 0, 3, 3, 5, 5, 5, 8, 8, 10, 10]
    assert [record.row["step"] for record in sink.records] == list(range(1, 13))
    assert engine.gathered == 5


def test_logs_hold_valid_json_even_of_a_step_that_was_not_finite(tmp_path):
    run = make_run(tmp_path, steps=2)
    engine = FakeEngine(losses=[2.0, float("nan")])
    record_run(run, engine, [Logs(tmp_path)], refused={2: "too_long"}.get)
    lines = (tmp_path / METRICS).read_text().splitlines()
    rows = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in lines]
    assert [(row["loss"], row["grad_norm"], row["skipped"]) for row in rows] == [(2.0, 0.5, False), (None, None, True)]
    assert rows[1]["source_losses"] == {"a": None}
    assert set(rows[0]) == {
        "stage", "step", "loss", "grad_norm", "lr", "skipped", "samples", "refused", "tokens", "padded_tokens", "fill", "tiles",
        "step_s", "data_wait_s", "data_wait_share", "slowest_rank", "slowest_host", "straggler_share", "samples_per_s", "tokens_per_s", "padded_tokens_per_s", "tflops", "mfu", "devices", "peak_memory_gib",
        "memory_tokens", "imbalance", "source_losses"}
    assert read_rows(tmp_path / SAMPLES) == [
        {"stage": "pretrain", "step": 1, "first_slot": 0, "ids": ["a/s0", "a/s1"], "refused": {}},
        {"stage": "pretrain", "step": 2, "first_slot": 2, "ids": ["a/s2", "a/s3"], "refused": {"2": "too_long"}},
    ]


def test_checks_see_every_record_on_every_rank():
    run, seen = make_run(steps=3), []
    engine = FakeEngine(is_main=False, reads_data=False,
                        others=lambda value: [Gathered([Share([Slot(0, "s", "a")], Parts(), 0.0)], [0.0], 0)])
    record_run(run, engine, [], checks=[lambda record: seen.append(record.slots)])
    assert [[slot.key for slot in slots] for slots in seen] == [["s"]] * 3


def test_a_source_without_supervised_tokens_has_no_mean():
    run, sink, engine = make_run(steps=1), Collector(), FakeEngine()
    step = engine.train_step
    engine.train_step = lambda batch, lr: replace(step(batch, lr), source_losses={"a": (0.0, 0.0), "b": (3.0, 2.0)})
    record_run(run, engine, [sink])
    assert sink.records[0].row["source_losses"] == {"b": 1.5}


def test_an_encoder_that_did_not_run_costs_nothing():
    row = make_row(lengths=(6, 4), tiles=((0, 2), ()))
    cached = replace(row, tiles_nCPP=row.tiles_nCPP[:0], features_nLC=torch.zeros(2, 16, 8))
    assert sample_work(cached, 4) == [SampleWork(6, 2, 2, cached=2), SampleWork(4, 0, 2)]
    plain, without = (useful_flops(MODEL, {"connector"}, sample_work(each, 4)) for each in (row, cached))
    assert plain.vision > 0 and without == replace(plain, vision=0)
