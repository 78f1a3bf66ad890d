"""Megatron's buffers of trained parameters and their gradients: where each parameter lies, and what each data-parallel rank updates."""

import math
from collections.abc import Sequence

from nvlm_train.config.schema import Layout
from nvlm_train.config.split import padded_size
from nvlm_train.model.parameters import Parameter

_ALIGNED, _BUCKET = 64, 128     # elements: a buffer begins each parameter and ends each bucket at such a multiple


def bucket_size(layout: Layout, data: int, pipeline_rank: int, chunk: int) -> int | None:
    """Elements after which a bucket is full (Megatron's default), where messages go beside the computing (`engine/overlap.py`): on
    the first pipeline rank, in its first (virtual) stage. None: one bucket."""
    first = pipeline_rank == 0 and chunk == 0
    return max(40_000_000, 1_000_000 * data) if layout.overlap and data > 1 and first else None


def buckets(parameters: Sequence[Parameter], data: int, size: int | None = None) -> list[list[tuple[int, int]]]:
    """Where the parameters of each bucket lie in it, as (begin, end), and last (end of the bucket, the same)."""
    found: list[list[tuple[int, int]]] = [[]]
    start = 0
    for parameter in reversed(parameters):          # from the last parameter to the first, about as backward goes
        start = padded_size(start, _ALIGNED)
        found[-1].append((start, start + parameter.elements))
        start += parameter.elements
        if size is not None and start >= size:
            found.append([])
            start = 0
    for bucket in found:
        end = padded_size(bucket[-1][1], math.lcm(data, _BUCKET)) if bucket else 0
        bucket.append((end, end))
    return found


def buffer_elements(parameters: Sequence[Parameter], data: int, size: int | None = None) -> int:
    """Of Megatron's parameter buffer (and of its gradients'): every parameter aligned, each bucket divisible among `data` ranks."""
    return sum(bucket[-1][1] for bucket in buckets(parameters, data, size))


def shard_elements(parameters: Sequence[Parameter], data: int, size: int | None = None) -> list[int]:
    """Elements whose optimizer state each data-parallel rank holds: its share of each bucket, less the padding in it."""
    held = [0] * data
    for *places, (whole, _) in buckets(parameters, data, size):
        share = whole // data
        for start, end in places:
            for rank in range(start // share, -(-end // share)):
                held[rank] += min(end, (rank + 1) * share) - max(start, rank * share)
    return held
