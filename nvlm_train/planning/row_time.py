"""Costs of the model's parts for one row: from these any split into stages is put together."""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from nvlm_train.config.layers import cross_layers
from nvlm_train.config.recompute import recomputed
from nvlm_train.config.schema import Run
from nvlm_train.geometry import geometry_of
from nvlm_train.model.accounting import Parts, trained_components
from nvlm_train.planning.cost import NOTHING, Pass, Place
from nvlm_train.planning.decoder_time import (
    Gradients,
    Row,
    answer,
    cross_attention,
    decoder_layer,
    embed,
)
from nvlm_train.planning.encoder_time import connect, encode
from nvlm_train.planning.sizes import FP32


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
    connects = connect(model, place, row.tiles, "connector" in trained, "vision" in trained)
    if "connector" in recomputed(model) and seen:
        connects = connects.again(connects.forward)
    if row.pieces and row.tiles:        # every rank is given all visual tokens
        numbers = place.context * row.tiles * geometry_of(model).tokens * model.language.hidden
        connects += Pass(place.exchange(numbers, place.machine.number_bytes), place.exchange(numbers, FP32) if seen else NOTHING)
    return RowCosts(
        encode(model.vision, place, row.tiles, "vision" in trained, run.layout.share_tiles, "vision" in recomputed(model)), connects,
        embed(model, place, row, own, own or seen), layers, cross, answer(model, place, row, own, passes or bool(trained)))


def layer_kinds(run: Run) -> list[tuple[bool, bool]]:
    """Of each decoder layer: whether it reads the memory, and whether its input carries a gradient."""
    model, crossed = run.model, cross_layers(run.model)
    everywhere = "language" in trained_components(model, run.train) or model.architecture != "nvlm_x"
    return [(number in crossed, everywhere or number > crossed[0]) for number in range(model.language.layers)]


def _layers(run: Run, place: Place, row: Row, trained: frozenset[str]) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    model, found = run.model, {}
    kinds = layer_kinds(run)
    for reads, below in set(kinds):
        needs = Gradients("language" in trained, "cross_attention" in trained, below, bool(trained & {"vision", "connector"}))
        added = cross_attention(model, place, row, needs) if reads else Pass()
        found[reads, below] = decoder_layer(model, place, row, needs, reads), added
    return tuple(found[kind][0] for kind in kinds), tuple(found[kind][1] for kind in kinds)
