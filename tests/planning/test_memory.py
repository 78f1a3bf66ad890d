"""The memory of a rank: exact on the CPU, and whether the paper's recipes fit their GPUs."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nvlm_train.config.compose import compose
from nvlm_train.config.schema import Layout
from nvlm_train.config.split import stage_layers
from nvlm_train.model.parameters import Parameter
from nvlm_train.planning.buffers import buffer_elements, shard_elements
from nvlm_train.planning.memory import run_memory, schedule
from tests.engine.launching import launch

GIB = 1 << 30
H100 = 79.1 * GIB                           # what a program can allocate on an idle H100 of 80 GB


# ------------------------------------------------------------------------------------------------------- on two processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    done = launch(Path(__file__).parent / "memory_ranks.py", 2, folder / "facts.json", folder=folder, timeout=240)
    assert done.returncode == 0, done.output[-4000:]
    return json.loads((folder / "facts.json").read_text())


@pytest.mark.slow
@pytest.mark.distributed
def test_real_weights_gradients_and_optimizer_are_what_was_said_to_the_byte(ranks):
    assert len(ranks) == 2 * 4
    for rank in ranks:
        assert rank["found"] == rank["said"] and rank["most"] >= rank["found"]["optimizer"], rank


@pytest.mark.slow
@pytest.mark.distributed
def test_a_real_step_on_the_cpu_lives_on_a_little_more_than_a_gpus(ranks):
    """The formulas are a GPU's. The CPU has no fused RMSNorm: it keeps up to three fp32 tensors of the input's size beside it, and the
    attention of several calls copies its output. So a step lives on more there than was said, never on less."""
    for rank in ranks:
        assert 0.6 < rank["said_peak"] / rank["peak"] <= 1, rank


# ---------------------------------------------------------------------------------------------------------- the arithmetic


def test_buffers_are_aligned_and_shared_out_by_hand():
    """100 and 1 numbers on 3 ranks: from the last, 1 at 0 and 100 at 64, ending at 164; a multiple of lcm(3, 128) is 384, 128 each."""
    parameters = [Parameter("first", (10, 10)), Parameter("last", (1,))]
    assert buffer_elements(parameters, 3) == 384
    assert shard_elements(parameters, 3) == [1 + 64, 36, 0]


def test_buckets_are_shared_out_one_by_one_by_hand():
    """Buckets of 100 on 2 ranks: [1 at 0, 100 at 64] of 256 and [100 at 0] of 128. Rank 0 has 1 + 64 of the first, 64 of the second."""
    parameters = [Parameter("first", (100,)), Parameter("second", (100,)), Parameter("last", (1,))]
    assert buffer_elements(parameters, 2, size=100) == 256 + 128
    assert shard_elements(parameters, 2, size=100) == [1 + 64 + 64, 36 + 36]


def test_nothing_trained_needs_no_buffer():
    assert buffer_elements([], 4) == 0 and shard_elements([], 4) == [0] * 4


@pytest.mark.parametrize("rank, most", [(0, 4), (1, 3), (2, 2), (3, 1)])
def test_rows_in_flight_of_1f1b(rank, most):
    assert _in_flight(schedule(4, 1, rank)) == most


@pytest.mark.parametrize("rank, most", [(0, 11), (1, 9), (2, 7), (3, 5)])
def test_rows_in_flight_when_interleaved(rank, most):
    """Warm-up of 2 x (4 - rank - 1) + (2 - 1) x 4 forwards, and one more before the first backward."""
    assert _in_flight(schedule(4, 2, rank)) == most


def _in_flight(steps: list[tuple[int, bool]]) -> int:
    held, most = [], 0
    for chunk, forward in steps:
        if forward:
            held.append(chunk)
        else:
            held.remove(chunk)
        most = max(most, len(held))
    assert not held
    return most


def test_layers_go_around_the_ranks():
    uneven = Layout(pipeline=4, first_stage_layers=14)
    assert [stage_layers(80, uneven, rank) for rank in range(4)] == [[range(14)], [range(14, 36)], [range(36, 58)], [range(58, 80)]]
    twice = Layout(pipeline=2, virtual=2, first_stage_layers=4)
    assert [stage_layers(12, twice, rank) for rank in range(2)] == [[range(2), range(6, 8)], [range(2, 6), range(8, 12)]]


def test_no_tensor_library_is_needed_and_an_answer_takes_milliseconds():
    code = "import sys, nvlm_train.planning.memory; assert not {'torch', 'megatron'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
    run = compose(["recipe=nvlm_d_72b", "stage=sft"])[0]
    run_memory(run, 128)
    start = time.process_time()
    run_memory(run, 128)
    assert time.process_time() - start < 0.25           # of a search through hundreds of layouts


# ------------------------------------------------------------------------------------------------------ the paper's recipes


# The fewest nodes of 8 GPUs on which the fullest rank fits with the fullest rows. What keeps X and H 72B from fewer is weights and fp32
# gradients of the whole model over 8 ranks, 54 GiB each; recomputing more, or two pipeline stages, makes them fit on far fewer.
FEWEST_NODES = {
    ("nvlm_d_34b", "pretrain"): 1, ("nvlm_x_34b", "pretrain"): 1, ("nvlm_h_34b", "pretrain"): 1,
    ("nvlm_d_34b", "sft"): 4, ("nvlm_x_34b", "sft"): 2, ("nvlm_h_34b", "sft"): 2,           # D: 8 x 4 ranks are four nodes
    ("nvlm_d_72b", "pretrain"): 1, ("nvlm_x_72b", "pretrain"): 1, ("nvlm_h_72b", "pretrain"): 1,
    ("nvlm_d_72b", "sft"): 4, ("nvlm_x_72b", "sft"): 8, ("nvlm_h_72b", "sft"): 8,
}


def fewest_nodes(recipe: str, stage: str, *overrides: str) -> int | None:
    run = compose([f"recipe={recipe}", f"stage={stage}", *overrides])[0]
    replica = run.layout.tensor * run.layout.pipeline
    counts = (nodes for nodes in range(1, 65) if not nodes * 8 % replica)
    return next((nodes for nodes in counts if max(memory.total for memory in run_memory(run, nodes * 8)) <= H100), None)


@pytest.mark.parametrize("recipe, stage", FEWEST_NODES)
def test_the_papers_recipes_fit_from_so_many_nodes_on(recipe, stage):
    assert fewest_nodes(recipe, stage) == FEWEST_NODES[recipe, stage]


@pytest.mark.parametrize("recipe, stage", FEWEST_NODES)
def test_the_papers_recipes_fit_on_128_gpus(recipe, stage):
    """Table 3's number of H100; every pipeline stage."""
    run = compose([f"recipe={recipe}", f"stage={stage}"])[0]
    stages = run_memory(run, 128)
    assert len(stages) == run.layout.pipeline and all(memory.total < H100 for memory in stages)


def test_what_makes_nvlm_x_and_h_72b_fit_on_fewer_nodes():
    for recipe, full in (("nvlm_x_72b", 5), ("nvlm_h_72b", 6)):
        assert fewest_nodes(recipe, "sft", "model.recompute=full") == full
        assert fewest_nodes(recipe, "sft", "layout.pipeline=2") == 4
