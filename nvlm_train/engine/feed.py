"""One rank of a model replica reads and decodes; the others are handed what they need.

Tensor and pipeline ranks of a replica train on the same rows. Decoding them on each would cost a node with eight tensor
ranks eight times the CPU, so the replica's first rank reads, and sends tokens to all and tiles to the first stage only.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
import torch.distributed as dist

from nvlm_train.contracts import StepBatch
from nvlm_train.errors import NvlmError, TrainingError
from nvlm_train.parallel.groups import Groups


def shared(batches: Iterable[StepBatch] | None, groups: Groups, device: torch.device) -> Iterator[StepBatch]:
    """Every rank of the replica iterates the reading rank's batches in lockstep.

    batches: the loader on the replica's first rank, None elsewhere. An error while reading is raised on all of them.
    """
    if len(groups.model_ranks) == 1:
        yield from batches
        return
    source = iter(batches) if batches is not None else None
    while True:
        batch, error = _next(source) if source is not None else (None, None)
        message = [(_without_pixels(batch), str(error) if error else None)]
        dist.broadcast_object_list(message, src=groups.model_ranks[0], group=groups.model_group)
        light, problem = message[0]
        if error is not None:
            raise error
        if problem is not None:
            raise TrainingError(f"rank {groups.model_ranks[0]} could not read its data: {problem}")
        if light is None:
            return
        if groups.pipeline_rank == 0 and groups.tensor_size > 1:
            yield _with_pixels(light, batch, groups, device)
        else:
            yield light if batch is None else batch


def _next(source: Iterator[StepBatch]) -> tuple[StepBatch | None, Exception | None]:
    try:
        return next(source, None), None
    except (NvlmError, OSError) as error:
        return None, error


def _without_pixels(batch: StepBatch | None) -> StepBatch | None:
    """The batch with its tiles' places but not their pixels, which only the first stage looks at."""
    return batch and replace(batch, rows=[replace(row, tiles_nCPP=row.tiles_nCPP[:0].clone()) for row in batch.rows])


def _with_pixels(light: StepBatch, batch: StepBatch | None, groups: Groups, device: torch.device) -> StepBatch:
    """Broadcast all rows' tiles, as bytes, over the first stage's tensor-parallel group."""
    counts = [len(row.tile_starts_n) for row in light.rows]
    if not sum(counts):
        return light
    if batch is not None:
        tiles = torch.cat([row.tiles_nCPP for row in batch.rows]).to(device)
    else:
        tiles = torch.empty(sum(counts), *light.rows[0].tiles_nCPP.shape[1:], dtype=torch.uint8, device=device)
    dist.broadcast(tiles, src=groups.model_ranks[0], group=groups.tensor_group)
    return replace(light, rows=[replace(row, tiles_nCPP=part) for row, part in zip(light.rows, tiles.split(counts))])
