"""One rank of a model replica reads and decodes; the others are handed what they need.

Tensor and pipeline ranks of a replica train on the same rows. Decoding them on each would cost a node with eight tensor
ranks eight times the CPU, so the replica's first rank reads, and sends tokens to all and tiles, or their cached features, to the
first stage only.
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
        message = [(_without_tiles(batch), str(error) if error else None)]
        dist.broadcast_object_list(message, src=groups.model_ranks[0], group=groups.model_group)
        light, problem = message[0]
        if error is not None:
            raise error
        if problem is not None:
            raise TrainingError(f"rank {groups.model_ranks[0]} could not read its data: {problem}")
        if light is None:
            return
        if groups.pipeline_rank == 0 and groups.tensor_size > 1:
            yield _with_tiles(light, batch, groups, device)
        else:
            yield light if batch is None else batch


def _next(source: Iterator[StepBatch]) -> tuple[StepBatch | None, Exception | None]:
    try:
        return next(source, None), None
    except (NvlmError, OSError) as error:
        return None, error


def _without_tiles(batch: StepBatch | None) -> StepBatch | None:
    """The batch with its tiles' places but neither pixels nor features, which only the first stage looks at."""
    return batch and replace(batch, rows=[
        replace(row, tiles_nCPP=row.tiles_nCPP[:0].clone(),
                features_nLC=None if row.features_nLC is None else row.features_nLC[:0].clone()) for row in batch.rows])


def _with_tiles(light: StepBatch, batch: StepBatch | None, groups: Groups, device: torch.device) -> StepBatch:
    """Broadcast all rows' tiles, or their features, as bytes, over the first stage's tensor-parallel group.

    The rows of a step that have tiles at all have either pixels or features, all of them the same.
    """
    shown = [row for row in light.rows if len(row.tile_starts_n)]
    if not shown:
        return light
    field = "tiles_nCPP" if shown[0].features_nLC is None else "features_nLC"
    if batch is not None:
        sent = torch.cat([getattr(row, field) for row in batch.rows if len(row.tile_starts_n)]).to(device)
    else:
        kind = getattr(shown[0], field)
        sent = torch.empty(sum(len(row.tile_starts_n) for row in shown), *kind.shape[1:], dtype=kind.dtype, device=device)
    dist.broadcast(sent.view(torch.uint8), src=groups.model_ranks[0], group=groups.tensor_group)
    parts = iter(sent.split([len(row.tile_starts_n) for row in shown]))
    return replace(light, rows=[replace(row, **{field: next(parts)}) if len(row.tile_starts_n) else row for row in light.rows])
