"""What a plan says where context-parallel ranks share rows: the part of a row by hand, its messages, memory, and the layout's words."""

import json
from pathlib import Path

import pytest

from nvlm_train import cli
from nvlm_train.config.compose import compose
from nvlm_train.planning.decoder_time import Row
from nvlm_train.planning.devices import Cluster, find_gpu
from nvlm_train.planning.memory import rank_memory
from nvlm_train.planning.plan import Plan, bench_of
from nvlm_train.planning.samples import Assume, assumed_samples
from nvlm_train.planning.shared import rank_row
from tests.engine.launching import launch
from tests.planning.layouts import SHARED_LAYOUTS

SHARED = ["recipe=nvlm_d_2b", "stage=sft", "layout.context=2"]


def test_a_part_by_hand():
    """16 tokens on two ranks, chunks of 4. One sample: either has 68 of the 136 pairs, and the first attends to 4 + 16 tokens."""
    whole = Row(16, (16,), tiles=3, supervised=5, memory=6, readers=4, pairs=24)
    part = rank_row(whole, 2)
    assert part == Row(8, (16,), tiles=2, supervised=3, memory=6, readers=2, pairs=12, whole=16, pieces=((4, 4), (4, 16)))
    assert part.causal_pairs(1) == 10 + (13 + 14 + 15 + 16) == 136 // 2 and part.attended == 20
    # In blocks of 4: the first piece's diagonal one; of the second one of queries against 4 of keys.
    assert part.causal_pairs(4) == (1 + 4) * 16
    assert rank_row(whole, 1) is whole and whole.attended == 16


def test_blocks_of_whole_samples_are_counted_as_before():
    assert Row(12, (5, 7)).causal_pairs(4) == (3 + 3) * 16 and Row(12, (5, 7)).causal_pairs(1) == 15 + 28


def plan_of(*words: str) -> Plan:
    (run,) = compose(list(words))
    return Plan(run, bench_of(run, Cluster(find_gpu("h100"), 1, 8), assumed_samples(run, Assume(), 64)))


def test_messages_within_a_row():
    """Of each row and layer 2 x 256 keys and values a token go out in bf16, their gradients come back in fp32, half of them from
    elsewhere; and once all visual tokens, 1,536 wide, in both ways."""
    plan = plan_of(*SHARED)
    (sent,) = plan.time.volumes
    tokens, language = plan.run.data.pack_tokens, plan.run.model.language
    assert language.kv_heads * language.head_dim == 256 and language.hidden == 1536
    layers = len(plan.step.rows) * language.layers * 512 * tokens * (2 + 4) / 2
    seen = sum(2 * -(-row.tiles // 2) for row in plan.step.rows) * 256 * 1536 * (2 + 4) / 2
    assert sent.context == pytest.approx(layers + seen)
    assert plan_of(*SHARED[:2]).time.volumes[0].context == 0


def test_ranks_are_counted():
    plan, alone = plan_of(*SHARED), plan_of(*SHARED[:2])
    assert plan.bench.replicas(plan.run) == 4 and plan.time.devices == 8
    assert plan.time.volumes[0].data == pytest.approx(alone.time.volumes[0].data)     # all eight hold the same weights
    assert plan.time.useful == alone.time.useful
    assert plan.time.done.language == pytest.approx(alone.time.done.language, rel=0.2)


def test_a_part_of_a_row_needs_a_part_of_its_memory():
    """Weights, gradients and optimizer are shared out over the same eight ranks; of what rows keep, half and a little more."""
    shared, whole = (rank_memory(compose(words)[0], 8, 0) for words in (SHARED, SHARED[:2]))
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(shared, name) == getattr(whole, name)
    assert 0.5 < shared.activations / whole.activations < 0.65
    assert shared.logits / whole.logits == pytest.approx(0.5, abs=0.01)


def test_the_command_tells_it(capsys):
    assert cli.main(["plan", *SHARED]) == 0
    out = capsys.readouterr().out
    assert "TP 1 PP 1 CP 2" in out and "4 replicas" in out and "context" in out
    assert cli.main(["plan", *SHARED, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sft"]["own"]["volumes"][0]["context"] > 0


@pytest.mark.full
@pytest.mark.distributed
def test_memory_of_a_part_is_what_the_model_keeps(tmp_path):
    """The real model on tensors without memory. Said is the fullest rank's part of the fullest row, each memory tile read once more than
    it may be, and all tokens of its part visual: never less than real, at most a tenth more; at the fullest moment a fifth."""
    script = Path(__file__).parent / "skeleton_facts.py"
    done = launch(script, 1, tmp_path / "facts.json", "shared", folder=tmp_path, timeout=400)
    assert done.returncode == 0, done.output[-4000:]
    steps = json.loads((tmp_path / "facts.json").read_text())["steps"]
    assert len({step["layout"] for step in steps}) == len(SHARED_LAYOUTS) == 5
    for step in steps:
        where = step["layout"], step["stage"]
        assert {name: step["standing"][name] for name in ("weights", "gradients")} == {
            name: step["predicted"][name] for name in ("weights", "gradients")}, where
        for real, said in zip(step["saved"], step["predicted_saved"], strict=True):
            assert real <= said < 1.1 * real, where
        assert 0.999 * step["peak"] < step["predicted_peak"] < 1.2 * step["peak"], where
        assert not step["wrong_gradients"] and not step["without_gradient"], where
