"""`nvlm data audit RUN`: a run's records against its plan. Records are written here as `Logs` writes them, then falsified."""

import json

import pytest

from data_prep import tiny
from nvlm_train import cli
from nvlm_train.config.compose import compose
from nvlm_train.config.dump import to_yaml
from nvlm_train.contracts import Slot
from nvlm_train.data.order import BlendSource
from nvlm_train.data.segments import plan
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import ConfigError
from nvlm_train.training.audit import audit
from nvlm_train.training.logs import Logs
from nvlm_train.training.metrics import StepRecord
from nvlm_train.training.run_dir import write_segments

STEPS, BATCH = 12, 40


@pytest.fixture
def run_dir(tmp_path):
    """The records of a run of two stages on built-in data, one slot of the second refused."""
    runs = compose(["recipe=nvlm_d_tiny", f"train.steps={STEPS}", f"train.global_batch={BATCH}", "train.warmup_steps=0",
                    f"run.dir={tmp_path}"])
    (tmp_path / "config.yaml").write_text(to_yaml(runs))
    logs = Logs(tmp_path)
    for run in runs:
        folders = [ShardFolder(tiny.resolve(source.path), name) for name, source in run.data.blend.items()]
        sources = [BlendSource(folder.source, len(folder), run.data.blend[folder.source].weight, None, folder.fingerprint,
                               tuple(entry.samples for entry in folder.entries)) for folder in folders]
        made = plan(run.train.seed, sources, 0, {folder.source: folder.name for folder in folders})
        write_segments(tmp_path, run.stage, made.segments)
        order = made.order
        for step in range(1, STEPS + 1):
            first = (step - 1) * BATCH
            slots = [Slot(n, folders[pick.source].key(pick.sample), folders[pick.source].source, "too_long" if n == 45 else None)
                     for n, pick in enumerate(order.between(first, first + BATCH), start=first)]
            logs.step(StepRecord({"stage": run.stage, "step": step}, slots))
    logs.close()
    return tmp_path


def falsify(run_dir, change):
    path = run_dir / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = change(rows) or rows
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_as_planned(run_dir, capsys):
    pretrain, sft = audit(run_dir)
    assert (pretrain.stage, sft.stage) == ("pretrain", "sft")
    for stage in (pretrain, sft):
        assert (stage.steps, stage.planned_steps, stage.wrong) == (STEPS, STEPS, 0)
        assert sum(use.slots for use in stage.uses.values()) == STEPS * BATCH
        assert sum(sum(use.refused.values()) for use in stage.uses.values()) == 1
        for use in stage.uses.values():
            assert use.least == use.slots // use.samples and use.most - use.least in (0, 1)
    assert cli.main(["data", "audit", str(run_dir)]) == 0
    assert "none is missing and none was taken twice" in capsys.readouterr().out


def test_an_unfinished_run_is_as_planned_so_far(run_dir):
    falsify(run_dir, lambda rows: rows[:STEPS + 3])
    assert [(stage.steps, stage.wrong) for stage in audit(run_dir)] == [(STEPS, 0), (3, 0)]


def swap(rows):
    rows[1]["ids"][0], rows[1]["ids"][1] = rows[1]["ids"][1], rows[1]["ids"][0]


def repeat(rows):
    return [*rows[:4], rows[3], *rows[4:]]


def lose_a_step(rows):
    return [*rows[:4], *rows[5:]]


def lose_a_slot(rows):
    del rows[2]["ids"][7]


@pytest.mark.parametrize("change, wrong, told", [
    (swap, 2, "slot 40 took"),
    (repeat, 1, "step 4 is recorded where step 5 belongs"),
    (lose_a_step, 1, "step 6 is recorded where step 5 belongs"),
    (lose_a_slot, 1 + BATCH - 8, "step 3 holds 39 slots from 80; planned are 40 from 80"),
], ids=lambda value: getattr(value, "__name__", None))
def test_falsified_records_are_found(run_dir, capsys, change, wrong, told):
    falsify(run_dir, change)
    found = audit(run_dir)[0]
    assert found.problems[0].startswith(told)
    assert found.wrong == wrong
    assert cli.main(["data", "audit", str(run_dir), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["problems"] == found.problems


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        audit(tmp_path)
    assert cli.main(["data", "audit"]) == 2
    assert cli.main(["data", "prove", str(tmp_path)]) == 2
