"""The fingerprint of weights: the same however they are split and padded, another for anything that differs."""

import itertools

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from nvlm_train.model import content
from nvlm_train.model.content import content_sum

WEIGHT = torch.randn(12, 10, generator=torch.Generator().manual_seed(1))


def state(*parts: ShardedTensor) -> dict:
    return dict(enumerate(parts))


def whole(tensor: torch.Tensor, key: str = "vision.weight", replica=0) -> ShardedTensor:
    return ShardedTensor.from_rank_offsets(key, tensor, replica_id=replica)


def split(tensor: torch.Tensor, axis: int, ranks: int) -> list[dict]:
    """Each rank's state."""
    return [state(ShardedTensor.from_rank_offsets("vision.weight", part.clone(), (axis, rank, ranks), replica_id=0))
            for rank, part in enumerate(tensor.chunk(ranks, axis))]


def total(states: list[dict]) -> int:
    return sum(content_sum(part, "vision") for part in states) % 2**64


@pytest.mark.parametrize(("axis", "ranks"), [(0, 1), (0, 2), (0, 4), (1, 2), (1, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_add_up_to_the_whole(axis, ranks, dtype):
    tensor = WEIGHT.to(dtype)
    assert total(split(tensor, axis, ranks)) == content_sum(state(whole(tensor)), "vision") != 0


@pytest.mark.parametrize("axis", [0, 1])
def test_padding_with_zeros_leaves_no_trace(axis):
    shape = list(WEIGHT.shape)
    shape[axis] = 4
    padded = torch.cat((WEIGHT, torch.zeros(shape)), axis)
    assert total(split(padded, axis, 2)) == content_sum(state(whole(WEIGHT)), "vision")


def test_only_main_replicas_of_the_component_count():
    alone = content_sum(state(whole(WEIGHT)), "vision")
    others = [whole(WEIGHT, replica=1), whole(WEIGHT, replica=(0, 1, 0)), whole(WEIGHT, "connector.weight"),
              whole(WEIGHT, "visionary.w")]
    assert content_sum(state(whole(WEIGHT, replica=(0, 0, 0)), *others), "vision") == alone


def test_anything_else_is_seen():
    changed = WEIGHT.clone()
    changed[7, 3] = torch.nextafter(changed[7, 3], torch.tensor(9.0))
    swapped, negative = WEIGHT.clone(), WEIGHT.clone()
    swapped[0, :2] = WEIGHT[0, [1, 0]]
    negative[2, 2] *= -1
    sums = [content_sum(state(whole(tensor, key)), "vision") for tensor, key in (
        (WEIGHT, "vision.weight"), (changed, "vision.weight"), (swapped, "vision.weight"), (negative, "vision.weight"),
        (WEIGHT.T.contiguous(), "vision.weight"), (WEIGHT.flip(0), "vision.weight"), (WEIGHT.roll(1, 1), "vision.weight"),
        (WEIGHT, "vision.other"), (WEIGHT.bfloat16(), "vision.weight"), (WEIGHT[:-1], "vision.weight"))]
    assert len(set(sums)) == len(sums)


def test_equal_values_at_different_places_do_not_cancel():
    sums = set()
    for a, b in itertools.combinations(range(40), 2):
        tensor = torch.zeros(40)
        tensor[a] = tensor[b] = 1.0
        sums.add(content_sum(state(whole(tensor)), "vision"))
    assert len(sums) == 780 and 0 not in sums


def test_chunks_change_nothing(monkeypatch):
    shapes = {"vision.a": (7, 3, 5, 4), "vision.b": (9,), "vision.c": (1, 6, 5)}
    tensors = [whole(torch.randn(shape), key) for key, shape in shapes.items()]
    once = content_sum(state(*tensors), "vision")
    for size in (1, 8, 13):
        monkeypatch.setattr(content, "CHUNK", size)
        assert content_sum(state(*tensors), "vision") == once
