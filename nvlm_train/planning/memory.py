"""What a rank of a run needs of its device's memory, and at which moment most: arithmetic over the configuration, no tensors.

Weights, gradients and optimizer are exact (`parameters`, and the padding of Megatron's buffers). What rows keep is exact but for a few
kilobytes (`activations`); the fullest moment around it is close (`workspace`). `outside` is an allowance, no result: what CUDA, NCCL,
cuBLAS and the allocator's fragments take beside the tensors.

Modelled are bf16 and torch's own kernels, its fp8 too (with compiled casts). In fp32 attention takes other ways, and Transformer Engine's layers keep less. Features that
were cached need no more than the encoder does.
"""

from dataclasses import dataclass, fields

from nvlm_train.config.schema import Run, Train
from nvlm_train.config.split import stage_layers
from nvlm_train.geometry import with_thumbnail
from nvlm_train.model.parameters import rank_parameters, trained_names
from nvlm_train.planning.activations import Kept, kept
from nvlm_train.planning.buffers import bucket_size, buffer_elements, shard_elements
from nvlm_train.planning.rows import RowSize, fullest
from nvlm_train.planning.schedule import FORWARD, order
from nvlm_train.planning.sizes import FP32, Sizes, sizes_of
from nvlm_train.planning.workspace import cast_weights, gather_buffer, largest, message, waiting

OUTSIDE = 3 << 30       # CUDA context 0.5 GiB, NCCL's buffers of several groups 1 GiB, cuBLAS and fragments the rest: an assumption


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at its fullest moment.

    weights: all parameters, in the compute dtype; gradients: of the trained ones, fp32; optimizer: this rank's share of fp32 master
    weights (bf16 training) and two moments (`train.optimizer_state`); activations: what the layers of all rows in flight keep; images: tiles, encoder and
    connector; logits: supervised tokens times vocabulary; communication: gather buffer and messages between stages; workspace:
    what the fullest moment needs beside all that, with fp8 by torch also the cast weights.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    images: int
    logits: int
    communication: int
    workspace: int
    outside: int = OUTSIDE

    @property
    def tensors(self) -> int:
        """All but `outside`: what torch.cuda.max_memory_allocated would say."""
        return self.total - self.outside

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def rank_memory(run: Run, world: int, pipeline_rank: int, row: RowSize | None = None, outside: int = OUTSIDE,
                stands: tuple[int, int, int] | None = None) -> Memory:
    """Of a tensor-parallel rank of pipeline stage `pipeline_rank` in a job of `world` devices (all ranks of a stage need the same).

    row: the sizes of every row; default: the fullest that the budgets allow. stands: `standing` of the same, where it is known. The run's
    rules and a world that the layout divides are taken to hold.
    """
    s, whole = sizes_of(run, row), row or fullest(run)
    data = world // (run.layout.tensor * run.layout.pipeline * run.layout.context)
    weights, gradients, optimizer = stands or standing(run, world, pipeline_rank)
    parts = kept(run, whole, pipeline_rank)
    flight, extra, sent = _fullest_moment(s, pipeline_rank, parts)
    extra += sum(cast_weights(s, layers) for layers in stage_layers(run.model.language.layers, run.layout, pipeline_rank))
    return Memory(weights, gradients, optimizer,
                  activations=sum(part.layers + part.fusion for part in flight),
                  images=tile_bytes(s, data, pipeline_rank) + sum(part.vision + part.connector for part in flight),
                  logits=sum(part.logits for part in flight),
                  communication=gather_buffer(s) + (sent + waiting(s, pipeline_rank)) * message(s), workspace=extra, outside=outside)


def run_memory(run: Run, world: int, row: RowSize | None = None, outside: int = OUTSIDE) -> list[Memory]:
    """`rank_memory` of each pipeline stage, first to last."""
    return [rank_memory(run, world, stage, row, outside) for stage in range(run.layout.pipeline)]


def standing(run: Run, world: int, pipeline_rank: int) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer state, which stand through the whole run, whatever is computed again."""
    data = world // (run.layout.tensor * run.layout.pipeline)       # context-parallel ranks share gradients and optimizer too
    compute = sizes_of(run).b
    weights = gradients = optimizer = 0
    names = trained_names(run.model, tuple(run.train.trainable))
    for number, chunk in enumerate(rank_parameters(run, pipeline_rank)):
        training = [parameter for parameter in chunk if parameter.name in names]
        size = bucket_size(run.layout, data, pipeline_rank, number)
        buffer = buffer_elements(training, data, size)
        weights += (sum(p.elements for p in chunk) - sum(p.elements for p in training) + buffer) * compute
        gradients += buffer * FP32
        optimizer += max(shard_elements(training, data, size)) * (FP32 * (compute < FP32) + 2 * moment_bytes(run.train))
    return weights, gradients, optimizer


def moment_bytes(train: Train) -> int:
    """Of one number of one of AdamW's two moments."""
    return FP32 if train.optimizer_state == "fp32" else FP32 // 2


def tile_bytes(s: Sizes, data: int, pipeline_rank: int) -> int:
    """uint8 tiles on the first stage: of one row; with several tensor- or context-parallel ranks, which are sent them all at once, those
    of all samples of a step, each with as many as it may have (`engine.feed`)."""
    if pipeline_rank:
        return 0
    run, limits = s.run, s.run.data
    tile = 3 * run.model.vision.tile_size**2
    if run.layout.tensor * run.layout.context == 1:
        return s.row.tiles * tile
    return -(-run.train.global_batch // data) * with_thumbnail(limits.max_tiles, limits.thumbnail) * tile


def _fullest_moment(s: Sizes, pipeline_rank: int, parts: list[Kept]) -> tuple[list[Kept], int, int]:
    """(what each row in flight keeps, bytes beside that, outputs that wait for their gradient), followed through the schedule."""
    layout, last = s.run.layout, s.run.layout.pipeline - 1
    pieces = stage_layers(s.run.model.language.layers, layout, pipeline_rank)
    extras = [largest(s, pieces[n], part, n == 0 and pipeline_rank == 0, n == len(parts) - 1 and pipeline_rank == last)
              for n, part in enumerate(parts)]
    sends = [layout.pipeline > 1 and not (n == len(parts) - 1 and pipeline_rank == last) for n in range(len(parts))]
    flight, best = [], (-1, [], 0, 0)
    for chunk, forward in schedule(layout.pipeline, len(parts), pipeline_rank):
        if forward:
            flight.append(chunk)
        sent = sum(sends[c] for c in flight)
        size = sum(parts[c].total for c in flight) + extras[chunk] + sent * message(s)
        best = max(best, (size, list(flight), extras[chunk], sent), key=lambda moment: moment[0])
        if not forward:
            flight.remove(chunk)
    return [parts[c] for c in best[1]], best[2], best[3]


def schedule(pipeline: int, virtual: int, rank: int) -> list[tuple[int, bool]]:
    """(virtual stage, whether forward) in the order of a rank, over as many rows as fill the pipeline."""
    return [(piece // pipeline, kind == FORWARD) for kind, piece, _ in order(rank, pipeline, virtual, 2 * pipeline)]
