"""Whose time it is, on traces written by hand: what a GPU's look like no machine without one can tell."""

import pytest

from nvlm_train.training.profile.parts import Owner
from nvlm_train.training.profile.times import PYTHON, innermost, merged, minus, overlaps, spent, windows_of
from nvlm_train.training.profile.trace import read_trace

TOLD = [(100e-6, 900e-6)]       # the step waits 100 µs for data, and is at its end 900 µs later


def op(name, start, stop, thread=1, number=None, cat="cpu_op"):
    return {"ph": "X", "cat": cat, "name": name, "tid": thread, "ts": start, "dur": stop - start, "args": {"External id": number}}


def mark(component, start, stop, thread=1):
    return op(f"nvlm.{component}", start, stop, thread, cat="user_annotation")


def kernel(name, start, stop, number=None):
    return {**op(name, start, stop, "stream 7", number, "kernel")}


def link(number, made, use):
    return [{"ph": phase, "cat": "fwdbwd", "name": "fwdbwd", "id": number, "tid": thread, "ts": start}
            for phase, (thread, start) in (("s", made), ("f", use))]


def node(name, start, stop, thread=1):
    """A function of the backward, as the engine calls it."""
    return [op(f"autograd::engine::evaluate_function: {name}", start, stop, thread), op(name, start + 1, stop - 1, thread)]


def times(rows, told=TOLD):
    trace = read_trace({"traceEvents": rows})
    windows = windows_of(trace, told)
    found = spent(trace, windows)
    assert sum(found.owners.values()) == pytest.approx(sum(window.end - window.begin for window in windows))
    return {owner: round(microseconds, 6) for owner, microseconds in found.owners.items() if microseconds}, found


ORIGIN = op("something before", 0, 1, thread=5)      # times count from the first event on


def test_a_gpus_time_is_that_of_its_kernels_by_what_launched_them():
    """The backward's kernel is the MLP's, since an MLP's product made its function, in another thread. A third of what nccl does
    is hidden behind the backward; the rest of it, and the time when nothing runs, is told apart."""
    rows = [
        ORIGIN, mark("vision", 100, 150), op("aten::convolution", 110, 120, number=1), mark("mlp", 150, 250),
        op("aten::mm", 160, 170, number=2), *node("MmBackward0", 300, 400, thread=2), op("aten::mm", 310, 320, 2, number=3),
        *link(1, (1, 160), (2, 301)), op("c10d::allreduce_", 410, 420, number=4), op("aten::_fused_adamw_", 500, 510, number=5),
        mark("step", 1000, 1050),
        kernel("Memcpy HtoD", 60, 80), kernel("conv", 120, 220, 1), kernel("gemm", 220, 320, 2), kernel("gemm", 350, 550, 3),
        kernel("ncclDevKernel_AllReduce", 500, 650, 4), kernel("adam", 700, 1040, 5)]
    owners, found = times(rows)
    assert owners == {
        Owner("data"): 80, Owner("other"): 20, Owner("vision", "forward"): 100, Owner("mlp", "forward"): 100,
        Owner("mlp", "backward"): 200, Owner("communication"): 100, Owner("optimizer"): 340, Owner("idle"): 110}
    assert found.hidden == 50
    assert found.operations["gemm", Owner("mlp", "backward")] == [1, 200]


def test_kernels_side_by_side_are_not_counted_twice():
    rows = [ORIGIN, mark("mlp", 150, 250), op("aten::mm", 160, 170, number=2), *node("X", 990, 995), mark("step", 1000, 1000),
            kernel("a", 200, 400, 2), kernel("b", 300, 450, 2), kernel("c", 320, 380, 2)]
    owners, _ = times(rows)
    assert owners == {Owner("mlp", "forward"): 250, Owner("data"): 100, Owner("idle"): 650}


def test_a_cpus_time_is_that_of_the_innermost_event():
    """Waiting for gloo, which talks in a thread of its own, is communication; Python within a part is the part's; after the last
    function of the backward all is the optimizer's."""
    rows = [
        ORIGIN, op("decode", 20, 90), mark("mlp", 150, 350), op("_Reduce", 180, 310), op("aten::mm", 180, 200),
        op("c10d::allreduce_", 202, 210), op("gloo:all_reduce", 200, 300, thread=9, cat="user_annotation"),
        *node("MmBackward0", 400, 600), op("aten::mm", 410, 590), *link(1, (1, 180), (1, 401)), op("aten::add", 700, 800),
        mark("step", 1000, 1000)]
    owners, found = times(rows)
    assert owners == {
        Owner("data"): 100, Owner("idle"): 100, Owner("mlp", "forward"): 100, Owner("communication"): 100,
        Owner("mlp", "backward"): 200, Owner("optimizer"): 400}
    assert found.operations[PYTHON, Owner("mlp", "forward")] == [1, 70]
    assert found.operations["aten::mm", Owner("mlp", "forward")] == [1, 20]


def test_what_is_computed_again_is_told_apart_from_its_backward():
    rows = [
        ORIGIN, op("CheckpointFunction", 110, 190), mark("mlp", 120, 180), op("aten::mm", 130, 170),
        *node("CheckpointFunctionBackward", 400, 700), mark("mlp", 420, 500), op("aten::mm", 430, 490),
        *node("MmBackward0", 510, 610), *link(1, (1, 110), (1, 401)), *link(2, (1, 430), (1, 511)),
        *node("torch::autograd::AccumulateGrad", 620, 650), mark("step", 1000, 1000)]
    owners, _ = times(rows)
    assert {owner: amount for owner, amount in owners.items() if owner.component == "mlp"} == {
        Owner("mlp", "forward"): 60, Owner("mlp", "recompute"): 80, Owner("mlp", "backward"): 130}
    assert owners[Owner("other", "recompute")] == 300 - 80 - 130


def test_backward_whose_operation_is_unknown_is_shown_as_such():
    owners, _ = times([ORIGIN, *node("MmBackward0", 400, 600), mark("step", 1000, 1000)])
    assert owners == {Owner("data"): 100, Owner("idle"): 300, Owner("unattributed", "backward"): 200, Owner("optimizer"): 400}


def test_two_steps_are_added_up_and_what_lies_between_them_is_no_steps():
    rows = [ORIGIN, op("aten::a", 500, 600), *node("X", 600, 990), mark("step", 1000, 1000), op("aten::save", 1000, 3000),
            op("aten::a", 3500, 3600), *node("X", 3600, 3990), mark("step", 4000, 4000)]
    owners, found = times(rows, TOLD * 2)
    assert sum(owners.values()) == 2000 and found.operations["aten::a", Owner("other", "forward")] == [2, 200]


def test_a_trace_without_a_finished_step_is_refused():
    with pytest.raises(ValueError, match="no finished step"):
        read_trace({"traceEvents": [ORIGIN]})


def test_intervals():
    assert list(merged([(5, 7), (0, 2), (1, 3), (3, 4)])) == [(0, 4), (5, 7)]
    assert list(minus([(0, 10), (20, 30)], [(2, 3), (8, 22), (29, 40)])) == [(0, 2), (3, 8), (22, 29)]
    assert list(overlaps([(0, 4), (5, 7), (8, 9)], 3, 6)) == [(3, 4), (5, 6)]
    assert list(innermost([], 1, 4)) == [(1, 4, None)]
