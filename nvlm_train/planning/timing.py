"""Seconds of one optimizer step: the rows through the pipeline, then gradients summed, weights updated and handed out again."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from nvlm_train.config.fp8_layers import rounded_weights
from nvlm_train.config.schema import Layout, Run
from nvlm_train.config.split import memory_budget, stage_layers
from nvlm_train.kernels import COMPILED
from nvlm_train.model.accounting import Parts, SampleWork, trained_components, useful_flops
from nvlm_train.model.parameters import rank_parameters, trained_names
from nvlm_train.planning.buffers import bucket_size
from nvlm_train.planning.cost import NOTHING, ROUNDED, TURNED, Cost, Pass
from nvlm_train.planning.decoder_time import Row
from nvlm_train.planning.fabric import Fabric
from nvlm_train.planning.layer_times import LayerTimes
from nvlm_train.planning.rates import Machine
from nvlm_train.planning.row_time import RowCosts, row_costs
from nvlm_train.planning.schedule import Played, play
from nvlm_train.planning.shared import rank_row
from nvlm_train.planning.step import Step

# Bytes more a weight where moments are bf16 (`engine.optimizer.RoundedAdamW`): both read and widened, 12; a hash of the gradient in 14
# kernels, 124; both added to, cut and written, 52.
_WIDENED = 188
_LAYERS, _BEHIND = "language.decoder.layers.", ("language.decoder.final_layernorm.", "language.output_layer.")

@dataclass(frozen=True)
class Trained:
    """Trained elements that one tensor-parallel rank holds: before the layers, of each layer, and behind them."""

    before: int
    layers: tuple[int, ...]
    after: int


@dataclass
class Memo:
    """What many layouts of one stage have in common, made once. Serves a single stage with one machine and its links within a node.
    measured: in place of the model's times of a row's parts."""

    measured: LayerTimes | None = None
    rows: dict = field(default_factory=dict)
    elements: dict = field(default_factory=dict)

    def costs(self, run: Run, fabric: Fabric, row: Row) -> RowCosts:
        layout, model = run.layout, run.model
        key = (layout.tensor, layout.sequence, layout.context, layout.share_tiles, model.recompute, model.recompute_parts, fabric.tensor,
               fabric.context, fabric.kernels, row)
        if key not in self.rows:
            costs = self.measured.costs if self.measured else row_costs
            self.rows[key] = costs(run, fabric.place(layout), rank_row(row, layout.context))
        return self.rows[key]

    def trained(self, run: Run) -> Trained:
        if run.layout.tensor not in self.elements:
            self.elements[run.layout.tensor] = trained_elements(run)
        return self.elements[run.layout.tensor]


@dataclass(frozen=True)
class Volumes:
    """Bytes that one rank of a pipeline stage sends in a step, by group: tensor parallel, to the next and the previous stage,
    data parallel (gradients' reduce-scatter in fp32, weights' all-gather in the compute dtype; context-parallel ranks take part),
    context parallel (keys and values, their gradients in fp32, visual tokens)."""

    tensor: float
    pipeline: float
    data: float
    context: float = 0.0


@dataclass(frozen=True)
class StepTime:
    """One step as predicted.

    pipeline: all rows, forward and backward; update_s: the slowest rank's reduction, update and hand-out of weights; host_s: what is
    left to the host; useful: operations by component, of all ranks. The rest is reckoned when asked for.
    """

    stages: "Stages"
    pipeline: Played
    updates: tuple[tuple[float, float], ...]
    host_s: float
    message: float
    useful: Parts
    replicas: int

    @property
    def update_s(self) -> float:
        return max(seconds for seconds, _ in self.updates)

    @property
    def seconds(self) -> float:
        return self.pipeline.seconds + self.update_s + self.host_s

    @property
    def devices(self) -> int:
        layout = self.stages.run.layout
        return layout.tensor * layout.pipeline * layout.context * self.replicas

    def utilisation(self, peak: float) -> float:
        """MFU: useful operations over what the devices could do in the step."""
        return self.useful.total / (self.seconds * self.devices * peak)

    @cached_property
    def done(self) -> Parts:
        """Operations of all ranks by component, padding, dummy heads and recomputation included."""
        one = sum((row.operations for row in self.stages.rows), Parts())
        layout = self.stages.run.layout
        return one.scaled(layout.tensor * layout.context * self.replicas)

    @cached_property
    def kinds(self) -> Cost:
        """The busiest stage's rows, both ways."""
        return self.stages.sum(max(range(len(self.pipeline.busy)), key=self.pipeline.busy.__getitem__))

    @cached_property
    def volumes(self) -> tuple[Volumes, ...]:
        """Of each pipeline rank."""
        layout, rows = self.stages.run.layout, len(self.stages.rows)
        sums = [self.stages.sum(rank) for rank in range(layout.pipeline)]
        return tuple(Volumes(done.sent, _exchanged(layout, rank, self.message, rows), sent, done.exchanged)
                     for rank, (done, (_, sent)) in enumerate(zip(sums, self.updates, strict=True)))


def step_time(run: Run, fabric: Fabric, step: Step, replicas: int, useful: Parts, memo: Memo | None = None) -> StepTime:
    """useful: operations of the whole step (`useful_of`); memo: shared by the layouts of one stage that are compared."""
    memo, machine, layout = memo or Memo(), fabric.machine, run.layout
    stages = Stages(run, [memo.costs(run, fabric, row) for row in step.rows])
    forward, backward = stages.seconds(machine)
    message = _message(run, step.rows[0].tokens, machine.number_bytes)
    played = play(forward, backward, layout.pipeline, fabric.pipeline.seconds(message) if layout.pipeline > 1 else 0.0)
    updates = tuple(_update(run, fabric, rank, replicas * layout.context, memo.trained(run), _beside(layout, rank, forward, backward))
                    for rank in range(layout.pipeline))
    return StepTime(stages, played, updates, machine.step_s, message, useful, replicas)


def useful_of(run: Run, samples: Sequence[SampleWork]) -> Parts:
    """Useful operations of a step of mean samples."""
    trained = trained_components(run.model, run.train)
    return useful_flops(run.model, trained, samples).scaled(run.train.global_batch / len(samples))


@dataclass(frozen=True)
class Stages:
    """The rows' costs as a layout splits them."""

    run: Run
    rows: Sequence[RowCosts]

    @cached_property
    def pieces(self) -> list[dict[int, Pass]]:
        """In the order in which a row passes them: what each costs, by row; rows that are one object are looked at once."""
        layout = self.run.layout
        held = [stage_layers(self.run.model.language.layers, layout, rank) for rank in range(layout.pipeline)]
        ordered = [held[rank][turn] for turn in range(layout.virtual) for rank in range(layout.pipeline)]
        different = {id(row): row for row in self.rows}
        return [{key: _piece(row, layers, number == 0, number == len(ordered) - 1) for key, row in different.items()}
                for number, layers in enumerate(ordered)]

    def seconds(self, machine: Machine) -> tuple[list[list[float]], list[list[float]]]:
        """Forward and backward, each [pieces][rows]."""
        forward, backward = [], []
        for piece in self.pieces:
            took = {key: (part.forward.seconds(machine), part.backward.seconds(machine)) for key, part in piece.items()}
            forward.append([took[id(row)][0] for row in self.rows])
            backward.append([took[id(row)][1] for row in self.rows])
        return forward, backward

    def sum(self, rank: int) -> Cost:
        """All of a pipeline rank's rows, both ways."""
        total = NOTHING
        for piece in self.pieces[rank::self.run.layout.pipeline]:
            for row in self.rows:
                total += piece[id(row)].forward + piece[id(row)].backward
        return total


def _piece(row: RowCosts, layers: range, first: bool, last: bool) -> Pass:
    total = row.between(layers)
    if first:
        total = row.before + total
    return total + row.after if last else total


def _message(run: Run, tokens: int, number_bytes: int) -> float:
    """Bytes between two stages for one row: hidden states, and room for the image memory behind them."""
    layout = run.layout
    slices = layout.tensor if layout.sequence else 1
    return (tokens // layout.context + memory_budget(run.model, run.data.pack_tiles, layout.tensor)) // slices * run.model.language.hidden * number_bytes


def _exchanged(layout: Layout, rank: int, message: float, rows: int) -> float:
    """Hidden states down and gradients up, each once for every piece that has a neighbour there."""
    pieces = range(rank, layout.pipeline * layout.virtual, layout.pipeline)
    last = layout.pipeline * layout.virtual - 1
    return message * rows * sum((piece < last) + (piece > 0) for piece in pieces) if layout.pipeline > 1 else 0.0


def trained_elements(run: Run) -> Trained:
    """Counted on a layout of one stage, whose names say which layer a parameter belongs to."""
    whole = rank_parameters(replace(run, layout=Layout(run.layout.tensor)), 0)[0]
    names = trained_names(run.model, run.train.trainable)
    before, after, layers = 0, 0, [0] * run.model.language.layers
    for parameter in whole:
        if parameter.name not in names:
            continue
        if parameter.name.startswith(_LAYERS):
            layers[int(parameter.name.removeprefix(_LAYERS).split(".", 1)[0])] += parameter.elements
        elif parameter.name.startswith(_BEHIND):
            after += parameter.elements
        else:
            before += parameter.elements
    return Trained(before, tuple(layers), after)


def _beside(layout: Layout, rank: int, forward: list[list[float]], backward: list[list[float]]) -> tuple[float, float]:
    """Seconds of computing that data-parallel messages of a pipeline rank go beside (`engine/overlap.py`): of the last row's backward
    for the gradients, of the next step's first row's forward for the weights. The first rank's go in buckets while it is at it, a
    later rank's in one while those before it are."""
    pieces = range(max(rank, 1) if layout.overlap else 0)
    return sum(backward[piece][-1] for piece in pieces), sum(forward[piece][0] for piece in pieces)


def _update(run: Run, fabric: Fabric, rank: int, copies: int, elements: Trained, beside: tuple[float, float]) -> tuple[float, float]:
    """(seconds, bytes sent) of a rank after its last backward, and what it waits for in the next step's first forward. On the first
    rank one bucket goes beside nothing: the last gradients are made last, the first weights are needed first. copies: ranks that hold
    the same weights."""
    machine, layout = fabric.machine, run.layout
    held = stage_layers(run.model.language.layers, layout, rank)
    count = sum(elements.layers[number] for layers in held for number in layers)
    count += elements.before * (rank == 0) + elements.after * (rank == layout.pipeline - 1)
    if not count:
        return 0.0, 0.0
    share = (copies - 1) / copies
    summed, handed_out = 4 * count * share, machine.number_bytes * count * share
    each = machine.update_bytes + (_WIDENED if run.train.optimizer_state == "bf16" else 0)
    casts = (ROUNDED[fabric.kernels.elementwise == COMPILED] + TURNED) * _cast(run, rank)
    seconds = machine.moved(machine.clear_bytes * count + each * count / copies + casts)
    alone = min(1.0, (bucket_size(layout, copies, 0, 0) or count) / count) if rank == 0 else 0.0
    for message, work in zip(map(fabric.data.seconds, (summed, handed_out)), beside, strict=True):
        seconds += max(message - work, message * alone)
    return seconds, summed + handed_out


def _cast(run: Run, rank: int) -> int:
    """Weights that a pipeline rank casts to fp8 anew in each step (`model.fp8_linear`): those of trained layers."""
    if "language" not in trained_components(run.model, run.train):
        return 0
    return sum(map(len, stage_layers(run.model.language.layers, run.layout, rank))) * rounded_weights(run.model, run.layout.tensor)
