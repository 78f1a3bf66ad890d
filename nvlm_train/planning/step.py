"""What one step gives a replica of the model to do: samples packed into rows and dealt to the replicas, by training's own code."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from nvlm_train.config.schema import Run
from nvlm_train.config.split import row_multiple
from nvlm_train.data.packing import Cost, deal, pack
from nvlm_train.model.accounting import SampleWork
from nvlm_train.planning.decoder_time import Row

DRAWN = 3       # steps drawn, of which the middle one stands for all
_KINDS = 8      # different rows that a replica's rows are told apart into, by their tiles


@dataclass(frozen=True)
class Step:
    """rows: of the replica that has most to do, for which the others wait.

    fill: real tokens over those of all rows; imbalance: that replica's work over the mean, less 1, as training deals it.
    """

    rows: tuple[Row, ...]
    fill: float
    imbalance: float


@dataclass(frozen=True)
class Packed:
    """The samples of one step and the rows they are packed into, not yet dealt to replicas."""

    samples: tuple[SampleWork, ...]
    costs: tuple[Cost, ...]
    rows: list[list[int]]


def packed_steps(run: Run, samples: Sequence[SampleWork], seed: int = 1) -> list[Packed]:
    """A few steps drawn from `samples`. Raises DataError as packing does."""
    draw, data, found = random.Random(seed), run.data, []
    for _ in range(DRAWN):
        drawn = tuple(draw.choices(samples, k=run.train.global_batch))
        costs = tuple(Cost(sample.tokens, sample.tiles) for sample in drawn)
        rows = pack(costs, data.pack_tokens, data.pack_tiles) if data.packing else [[i] for i in range(len(costs))]
        found.append(Packed(drawn, costs, rows))
    return found


def typical_step(run: Run, packed: Sequence[Packed], replicas: int) -> Step:
    """The middle one, by its heaviest replica."""
    steps = [_dealt(run, step, replicas) for step in packed]
    return sorted(steps, key=lambda step: (sum(row.tiles for row in step.rows), len(step.rows)))[len(steps) // 2]


def _dealt(run: Run, step: Packed, replicas: int) -> Step:
    dealt = deal(step.rows, step.costs, replicas, row_multiple(run.layout))
    work = [sum(step.costs[i].work for row in rows for i in row) for rows in dealt]
    heaviest = dealt[max(range(replicas), key=work.__getitem__)]
    tokens, room = sum(cost.tokens for cost in step.costs), sum(map(len, dealt)) * run.data.pack_tokens
    rows = [row_of([step.samples[i] for i in row], run.data.pack_tokens) for row in heaviest]
    return Step(_alike(rows), tokens / room, max(work) * replicas / sum(work) - 1 if sum(work) else 0.0)


def _alike(rows: list[Row]) -> tuple[Row, ...]:
    """Many rows as few different ones, in the same order: by their tiles they are put into classes, each of which its middle one
    stands for."""
    ranked = sorted(range(len(rows)), key=lambda at: (rows[at].tiles, at))
    size = -(-len(rows) // _KINDS)
    chosen = {at: rows[ranked[min(len(rows) - 1, place // size * size + size // 2)]] for place, at in enumerate(ranked)}
    return tuple(chosen[at] for at in range(len(rows)))


def row_of(samples: Sequence[SampleWork], tokens: int) -> Row:
    """These samples end to end in a row of `tokens`, and padding."""
    lengths = [sample.tokens for sample in samples]
    padding = tokens - sum(lengths)
    return Row(tokens, tuple(lengths + [padding] * (padding > 0)), sum(s.tiles - s.cached for s in samples),
               sum(s.supervised for s in samples), sum(s.memory_tokens for s in samples), sum(s.readers for s in samples),
               sum(s.pairs for s in samples))
