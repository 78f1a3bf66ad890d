"""One rank of a model replica reads and decodes; the others are handed what they need.

Tensor, context and pipeline ranks of a replica train on the same rows. Decoding them on each would cost a node with eight tensor
ranks eight times the CPU, so the replica's first rank reads, and sends tokens to all and tiles, or their cached features, to the
first stage only.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from nvlm_train.contracts import PackedBatch, StepBatch
from nvlm_train.errors import NvlmError, TrainingError
from nvlm_train.parallel.groups import Groups

Rows = Sequence[PackedBatch]


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
        if groups.pipeline_rank == 0 and groups.tensor_size * groups.context_size > 1:
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
    """The light batch with its rows' tiles, or their features, which the first stage's ranks send each other.

    The rows of a step that have tiles at all have either pixels or features, all of them the same.
    """
    shown = [at for at, row in enumerate(light.rows) if len(row.tile_starts_n)]
    full = None if batch is None else [batch.rows[at] for at in shown]
    rows = list(light.rows)
    send = _sent_pixels if all(row.features_nLC is None for row in rows) else _sent_features
    for at, row in zip(shown, send([rows[at] for at in shown], full, groups, device), strict=True):
        rows[at] = row
    return replace(light, rows=rows)


def _sent_pixels(light: Rows, full: Rows | None, groups: Groups, device: torch.device) -> list[PackedBatch]:
    """All rows' tiles in one message."""
    if not light:
        return []
    counts = [len(row.tile_starts_n) for row in light]
    shape = (sum(counts), *light[0].tiles_nCPP.shape[1:])
    tiles = _sent(None if full is None else torch.cat([row.tiles_nCPP for row in full]), shape, torch.uint8, groups, device)
    return [replace(row, tiles_nCPP=part) for row, part in zip(light, tiles.split(counts), strict=True)]


def _sent_features(light: Rows, full: Rows | None, groups: Groups, device: torch.device) -> list[PackedBatch]:
    """Row by row, and back into host memory: a step's features are several times its pixels and need not fit the device."""
    rows = []
    for at, row in enumerate(light):
        own, kind = None if full is None else full[at].features_nLC, row.features_nLC
        features = _sent(own, (len(row.tile_starts_n), *kind.shape[1:]), kind.dtype, groups, device)
        rows.append(replace(row, features_nLC=features.cpu() if own is None else own))
    return rows


def _sent(own: torch.Tensor | None, shape: Sequence[int], dtype: torch.dtype, groups: Groups,
          device: torch.device) -> torch.Tensor:
    """A tensor of the reading rank on every rank of its stage, as bytes."""
    tensor = torch.empty(*shape, dtype=dtype, device=device) if own is None else own.to(device).contiguous()
    dist.broadcast(tensor.view(torch.uint8), src=groups.model_ranks[0], group=groups.stage_group)
    return tensor
