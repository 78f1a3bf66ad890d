"""Costs of the model's parts for one row: from these any split into stages is put together."""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from nvlm_train.config.layers import cross_layers
from nvlm_train.config.schema import Run
from nvlm_train.model.accounting import Parts, trained_components
from nvlm_train.planning.cost import Pass, Place
from nvlm_train.planning.decoder_time import (
    Gradients,
    Row,
    answer,
    cross_attention,
    decoder_layer,
    embed,
)
from nvlm_train.planning.encoder_time import connect, encode


@dataclass(frozen=True)
class RowCosts:
    """before: encoder, connector and embedding, on the first stage; after: norm, logits and loss, on the last.

    layers: each decoder layer, of which `cross` is what cross-attention adds to it.
    """

    vision: Pass
    connector: Pass
    embedding: Pass
    layers: tuple[Pass, ...]
    cross: tuple[Pass, ...]
    after: Pass

    @cached_property
    def before(self) -> Pass:
        return self.vision + self.connector + self.embedding

    @cached_property
    def operations(self) -> Parts:
        """Done for this row, both ways, by one rank of the tensor-parallel group of every stage."""

        def flops(*parts: Pass) -> float:
            return sum(part.forward.flops + part.backward.flops for part in parts)

        cross = flops(*self.cross)
        return Parts(flops(self.vision), flops(self.connector), flops(self.embedding, self.after, *self.layers) - cross, cross)

    @cached_property
    def _up_to(self) -> list[Pass]:
        return list(accumulate(self.layers, initial=Pass()))

    def between(self, layers: range) -> Pass:
        """All of these layers, neighbours."""
        return self._up_to[layers.stop] + self._up_to[layers.start].scaled(-1) if layers else Pass()


def row_costs(run: Run, place: Place, row: Row) -> RowCosts:
    """Of one row on one rank of its tensor-parallel group."""
    model, trained = run.model, trained_components(run.model, run.train)
    seen, own = bool(trained & {"vision", "connector"}), "language" in trained
    layers, cross = _layers(run, place, row, trained)
    # Hidden states carry a gradient from the first stage on, whatever is frozen, save for NVLM-X (`Nvlm.route_gradients`).
    passes = own or model.architecture != "nvlm_x"
    return RowCosts(
        encode(model.vision, place, row.tiles, "vision" in trained),
        connect(model, place, row.tiles, "connector" in trained, "vision" in trained),
        embed(model, place, row, own, own or seen), layers, cross, answer(model, place, row, own, passes or bool(trained)))


def _layers(run: Run, place: Place, row: Row, trained: frozenset[str]) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    model, crossed, own = run.model, cross_layers(run.model), "language" in trained
    everywhere = own or model.architecture != "nvlm_x"
    known: dict[tuple[bool, bool], tuple[Pass, Pass]] = {}
    found = []
    for number in range(model.language.layers):
        reads, below = number in crossed, everywhere or number > crossed[0]
        if (reads, below) not in known:
            needs = Gradients(own, "cross_attention" in trained, below, bool(trained & {"vision", "connector"}))
            added = cross_attention(model, place, row, needs) if reads else Pass()
            known[reads, below] = decoder_layer(model, place, row, needs, reads), added
        found.append(known[reads, below])
    return tuple(layer for layer, _ in found), tuple(added for _, added in found)
