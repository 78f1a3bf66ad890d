"""The hook that asks benchmarks and guards text, on an engine whose answers are known before and after every step."""

import json
import threading
from types import SimpleNamespace

import pytest
from evaluating_fakes import COUNT, Setting, Talker
from training_fakes import Collector

from nvlm_train.errors import ConfigError, DataError
from nvlm_train.evaluation.guard import TextRegression
from nvlm_train.evaluation.readers.shards import Shards
from nvlm_train.training.logs import EVAL, Logs, read_rows
from nvlm_train.training.preemption import Preempted
from nvlm_train.training.report import write_report
from tests.evaluation.fakes import Meeting


@pytest.fixture
def setting(tmp_path):
    return Setting(tmp_path)


def after(hook, *steps):
    for step in steps:
        hook.on_step(SimpleNamespace(step=step))


def test_questions_are_asked_when_they_are_due_and_told_to_everybody(setting):
    engine, sink = Talker(right=15), Collector()
    hook = setting.hook(engine, [sink], evaluate={"every": 4, "examples": 3}, save_every=10)
    hook.on_start(0)
    after(hook, *range(1, 21))
    assert [(row["step"], row["scores"]["score"]) for row, _ in sink.scores] == [(step, 0.75) for step in (0, 4, 8, 10, 12, 16, 20)]
    row, shown = sink.scores[-1]
    assert row["stage"] == "sft" and row["kind"] == "score" and row["task"] == "demo_sums" and row["scores"]["questions"] == COUNT
    assert row["scores"]["low"] < 0.75 < row["scores"]["high"]
    assert [each["correct"] for each in shown] == [True, True, True] and shown[2]["key"] == "quiz/q13"
    assert setting.beats and set(setting.beats) == {0, 4, 8, 10, 12, 16, 20}
    answers = read_rows(setting.dir / "benchmarks" / "sft-step-00000010" / "demo_sums.jsonl")
    assert [answer["score"] for answer in answers] == [1.0] * 15 + [0.0] * 5
    assert len(read_rows(setting.dir / "benchmarks" / "shown" / "demo_sums" / "predictions.jsonl")) == 3
    assert engine.asked == 7 * COUNT


def test_only_at_checkpoints_or_only_elsewhere(setting):
    sink = Collector()
    hook = setting.hook(Talker(), [sink])
    hook.on_start(0)
    after(hook, 3, 9, 10, 100)
    assert [row["step"] for row, _ in sink.scores] == [0, 10, 100]
    sink = Collector()
    hook = setting.hook(Talker(), [sink], evaluate={"at_checkpoints": False})
    hook.on_start(0)
    after(hook, 10, 100)
    assert [row["step"] for row, _ in sink.scores] == [], "the backbone is known already, and the rest is another job's"


def test_a_regression_is_told_once_while_it_lasts(setting, caplog):
    engine, sink = Talker(), Collector()
    hook = setting.hook(engine, [sink])
    hook.on_start(0)
    for step, right in ((10, 19), (20, 8), (30, 7), (40, 20), (50, 5)):
        engine.right = right
        after(hook, step)
    guards = [row["guard"] for row, _ in sink.scores[1:]]
    assert [(guard["alarm"], guard["raised"]) for guard in guards] == [
        (False, False), (True, True), (True, False), (False, False), (True, True)]
    assert [guard["delta"] for guard in guards] == pytest.approx([-0.05, -0.6, -0.65, 0.0, -0.75])
    assert all(guard["backbone"] == 1.0 and guard["margin"] == 0.02 for guard in guards)
    told = [record.message for record in caplog.records if "TEXT GUARD" in record.message]
    assert len(told) == 2
    assert told[0].startswith("TEXT GUARD, after step 20 of sft: demo_sums fell from 100.0 to 40.0: -60.0 points (")
    assert [bool(word) for word in setting.words] == [False, True, True, False, True]
    assert setting.saves == [], "nobody asked for more than an alarm"


def test_the_guard_stops_the_run_after_saving(setting):
    engine = Talker()
    hook = setting.hook(engine, guard={"stop": True}, evaluate={"every": 3})
    hook.on_start(0)
    after(hook, 1, 2, 3)
    engine.right = 2
    after(hook, 4, 5)
    with pytest.raises(TextRegression, match=r"stopped by the text guard after step 6 of sft, with everything saved: demo_sums fell from 100.0"):
        after(hook, 6)
    assert setting.saves == [6]


def test_every_rank_stops_and_one_writes(setting):
    meeting, raised = Meeting(2), {}
    engines = [Talker(data_rank=rank, data_size=2, meeting=meeting) for rank in range(2)]
    sinks = [Collector(), Collector()]

    def rank(number):
        hook = setting.hook(engines[number], [sinks[number]] if number == 0 else [], guard={"stop": True})
        hook.on_start(0)
        engines[number].right = 0
        try:
            after(hook, 10)
        except TextRegression as error:
            raised[number] = str(error)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert raised[0] == raised[1] and "demo_sums fell from 100.0 to 0.0" in raised[0]
    assert [row["step"] for row, _ in sinks[0].scores] == [0, 10]
    assert engines[0].asked + engines[1].asked == 2 * COUNT, "ranks share the questions"


def test_the_backbone_is_asked_once(setting):
    setting.hook(Talker()).on_start(0)
    again = Talker(right=3)
    setting.hook(again).on_start(0)
    assert again.asked == 0, "killed before its first checkpoint, and started again from the same weights"
    resumed, sink = Talker(right=3), Collector()
    hook = setting.hook(resumed, [sink])
    (setting.dir / "benchmarks" / "sft-step-00000010").mkdir()
    (setting.dir / "benchmarks" / "sft-step-00000010" / "demo_sums.json").write_text('{"limit": 0, "max_new_tokens": 6}')
    hook.on_start(10)
    assert resumed.asked == 0
    after(hook, 20)
    assert sink.scores[0][0]["guard"]["backbone"] == 1.0 and sink.scores[0][0]["guard"]["alarm"]


def test_other_weights_are_another_backbone(setting):
    setting.hook(Talker()).on_start(0)
    other = Talker(right=6)
    setting.hook(other, weights="sft: starts from the weights of elsewhere").on_start(0)
    assert other.asked == COUNT
    facts = json.loads((setting.dir / "benchmarks" / "backbone" / "demo_sums.json").read_text())
    assert facts["score"] == 0.3 and facts["weights"] == "sft: starts from the weights of elsewhere"


def test_pretraining_that_trains_the_language_model_has_the_backbone_finetuning_has_not(setting):
    setting.hook(Talker(), stage="pretrain").on_start(0)
    later = Talker(right=6)
    setting.hook(later, weights="sft: starts from the weights of pretraining").on_start(0)
    assert later.asked == 0
    frozen = Talker()
    hook = setting.hook(frozen, stage="pretrain", trainable=("connector",), guard={"stop": True})
    hook.on_start(0)
    frozen.right = 0
    after(hook, 10)
    assert setting.saves == [], "a language model that is not trained cannot regress"


def test_a_guard_that_comes_too_late(setting, caplog):
    hook = setting.hook(Talker())
    hook.on_start(10)
    assert "demo_sums cannot be guarded: sft has done 10 steps, and the backbone was not asked before the first" in caplog.text
    after(hook, 20)     # asked all the same
    with pytest.raises(ConfigError, match=r"cannot be guarded.*guard\.benchmarks=\[\]"):
        setting.hook(Talker(), guard={"stop": True}).on_start(10)


def test_a_guard_that_asks_otherwise_than_the_backbone_was_asked(setting, caplog):
    setting.hook(Talker()).on_start(0)
    setting.hook(Talker(), evaluate={"limit": 5}).on_start(10)
    assert "the backbone was asked with evaluate.limit=0 and answers of up to 6 tokens" in caplog.text


def test_what_a_stopped_job_left_unasked_is_asked_when_it_goes_on(setting):
    sink = Collector()
    hook = setting.hook(Talker(), [sink])
    hook.on_start(0)
    setting.stopping = True
    after(hook, 10)
    assert len(sink.scores) == 1 and not (setting.dir / "benchmarks" / "sft-step-00000010").exists()
    setting.stopping = False
    hook = setting.hook(Talker(), [sink])
    hook.on_start(10)
    assert [row["step"] for row, _ in sink.scores] == [0, 10]


def test_told_to_stop_while_the_backbone_is_asked_no_step_is_taken(setting):
    setting.stopping = True
    with pytest.raises(Preempted, match="stopped while the text guard asked the backbone demo_sums, before the first step of sft"):
        setting.hook(Talker()).on_start(0)
    setting.stopping, later = False, Talker()
    setting.hook(later).on_start(0)
    assert later.asked == COUNT


def test_files_that_cannot_be_read_any_more_cost_a_warning_and_not_the_run(setting, caplog, monkeypatch):
    hook = setting.hook(Talker())
    hook.on_start(0)

    def gone(self, wanted):
        raise DataError("the disk is gone")

    monkeypatch.setattr(Shards, "rows", gone)
    after(hook, 10)
    assert "demo_sums was not asked after step 10" in caplog.text and "training goes on" in caplog.text


def test_files_that_are_not_there_are_said_before_the_first_step(setting):
    with pytest.raises(DataError, match="nowhere"):
        setting.hook(Talker(), evaluate={"data": {"demo_sums": str(setting.folder / "nowhere")}}).on_start(0)


def test_a_word_from_another_job_stops_the_run(setting):
    hook = setting.hook(Talker(), guard={"stop": True})
    hook.on_start(0)
    after(hook, 1)
    word = setting.dir / "benchmarks" / "sft-step-00000001" / "alarm"
    word.parent.mkdir()
    word.write_text("demo_sums fell\n")
    with pytest.raises(TextRegression, match=r"demo_sums fell \(said by .*alarm: remove it to go on\)"):
        after(hook, 2)
    assert setting.saves == [2]


def test_the_report_shows_the_papers_table_the_curve_and_the_alarm(setting):
    engine, logs = Talker(), Logs(setting.dir)
    hook = setting.hook(engine, [logs])
    hook.on_start(0)
    engine.right = 8
    after(hook, 10)
    logs.close()
    assert [row["step"] for row in read_rows(setting.dir / EVAL)] == [0, 10]
    (setting.dir / "metrics.jsonl").write_text(json.dumps({"stage": "sft", "step": 10, "loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "step_s": 1.0,
                                                           "tokens": 5, "samples": 2, "data_wait_s": 0.0, "padded_tokens": 8}) + "\n")
    page = write_report(setting.dir).read_text(encoding="utf-8")
    assert "Text ability" in page and "<td>100.0</td><td>40.0</td>" in page and "<td>-60.0</td>" in page
    assert 'class="panel alarm"' in page and "demo_sums fell from 100.0 to 40.0" in page
    assert 'aria-label="demo_sums: points of 100, 95% interval"' in page, "a curve of its scores"
    assert "quiz/q0" in page, "and some of its answers"
    engine.right = COUNT
    logs = Logs(setting.dir)
    hook = setting.hook(engine, [logs])
    hook.on_start(20)
    after(hook, 30)
    logs.close()
    page = write_report(setting.dir).read_text(encoding="utf-8")
    assert 'class="panel alarm"' not in page and "<td>+0.0</td>" in page
