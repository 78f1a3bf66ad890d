"""What differs between ranks is named with both values and where; what cannot work is told from what is only remarkable."""

import dataclasses

import pytest

from nvlm_train.doctor import NOTE, PROBLEM
from nvlm_train.health.comparing import compare
from nvlm_train.health.roll import named, spans
from tests.health.rank_threads import facts


def ranks(*changed: int, **changes) -> list:
    return [facts(rank, **(changes if rank in changed else {})) for rank in range(4)]


def test_ranks_that_fit_give_no_finding():
    assert compare(ranks()) == []


@pytest.mark.parametrize(("name", "status"), [("torch", PROBLEM), ("nvlm_train", PROBLEM), ("Python", NOTE)])
def test_another_version_on_a_node_is_named_with_both(name, status):
    other = {**facts(0).versions, name: "9.9"}
    found = compare(ranks(2, 3, versions=other))
    assert [(finding.name, finding.status) for finding in found] == [(name, status)]
    assert f"{facts(0).versions[name]} on node-a (ranks 0-1), 9.9 on node-b (ranks 2-3)" in found[0].text


def test_other_variables_are_remarked():
    found = compare(ranks(1, environment={"NCCL_ALGO": "Ring"}))
    assert [(finding.name, finding.status) for finding in found] == [("NCCL_ALGO", NOTE)]
    assert "not set on node-a, node-b (ranks 0, 2-3), Ring on node-a (rank 1)" in found[0].text


def test_ranks_that_share_a_gpu_cannot_work():
    found = compare([facts(rank, gpu=f"NVIDIA H100, GPU-{rank // 2 if rank < 2 else rank}") for rank in range(4)])
    assert [(finding.name, finding.status) for finding in found] == [("GPU", PROBLEM)] and "ranks 0-1 share one GPU of node-a" in found[0].text


def test_a_rank_without_a_gpu_among_others_cannot_work():
    found = compare([facts(rank, gpu=f"NVIDIA H100, GPU-{rank}" if rank else "") for rank in range(4)])
    assert found[0].status == PROBLEM and "CPU on node-a (rank 0)" in found[0].text


def test_worlds_and_ranks_must_agree():
    wrong = [facts(0), dataclasses.replace(facts(1), rank=3, world=8)]
    assert [finding.status for finding in compare(wrong)] == [PROBLEM, PROBLEM]


def test_ranks_are_named_in_runs():
    assert (named([3]), named([2, 0, 1, 9])) == ("rank 3", "ranks 0-2, 9")
    assert spans([0, 2, 3, 4, 8]) == "0, 2-4, 8"
