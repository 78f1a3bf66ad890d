"""The parts of a model that benchmarks/layers.py times: few layers of a run's own sizes, as one rank of its tensor-parallel group has them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from nvlm_train.config.schema import Layout, Run
from nvlm_train.contracts import PackedBatch
from nvlm_train.engine.megatron import bare_stages, whole_model_names
from nvlm_train.engine.optimizer import data_parallel
from nvlm_train.geometry import geometry_of
from nvlm_train.kernels import KernelPlan
from nvlm_train.model.freeze import set_trainable
from nvlm_train.model.fusion import fuse
from nvlm_train.model.nvlm import DeviceRow, Nvlm, to_device
from nvlm_train.parallel.groups import clear, lay_out
from nvlm_train.planning.layer_times import ENCODER, ENCODER_LAYER

CHAIN = 4       # decoder layers behind each other


@dataclass(frozen=True)
class Rank:
    """What the parts are built with."""

    run: Run
    device: torch.device
    dtype: torch.dtype
    kernels: KernelPlan

    @property
    def slices(self) -> int:
        return self.run.layout.tensor if self.run.layout.sequence else 1


def few_layers(run: Run) -> Run:
    """The same sizes in one stage, with one layer of the encoder and one of the decoder, which reads nothing."""
    model = run.model
    model = replace(model, vision=replace(model.vision, layers=1), language=replace(model.language, layers=1),
                    cross_attention=replace(model.cross_attention, layers=(1,)))
    return replace(run, model=model, layout=replace(run.layout, pipeline=1, virtual=1, first_stage_layers=None))


@contextmanager
def alone(layout: Layout, seed: int) -> Iterator[None]:
    """Be the first rank of a tensor-parallel group whose others answer at once."""
    new_group = dist.new_group
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=layout.tensor)
    try:
        dist.new_group = lambda *args, **kwargs: new_group(*args, **{**kwargs, "backend": "fake"})      # Megatron asks for gloo too
        lay_out(layout, seed)
        yield
    finally:
        dist.new_group = new_group
        clear()
        dist.destroy_process_group()


def built(stage: Nvlm, run: Run) -> Nvlm:
    """A stage with values, frozen as the run says, its gradients summed in Megatron's buffers."""
    set_trainable(whole_model_names(stage), run.train.trainable)
    stage.route_gradients({name for name, parameter in stage.named_parameters() if parameter.requires_grad})
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.normal_(0.0, 0.02)
    [wrapped] = data_parallel([stage], overlap=False)
    return wrapped.train().module


def leaf(tensor: Tensor, needs: bool) -> Tensor:
    """New values of the same shape and size, that need a gradient or not."""
    return torch.randn_like(tensor).requires_grad_(needs)


class Parts:
    """One-stage Nvlm of few layers, its first rank, and a row on the device."""

    def __init__(self, rank: Rank, row: PackedBatch) -> None:
        self.rank, run = rank, few_layers(rank.run)
        self.stage = built(*bare_stages(run, rank.dtype, rank.kernels), run)
        self.row: DeviceRow = to_device(row, rank.device, geometry_of(run.model).tokens)
        self.trains = {name.split(".")[0] for name, parameter in self.stage.named_parameters() if parameter.requires_grad}
        with torch.no_grad():
            self.features = self.stage.vision(self.row.tiles_nCPP)
            self.seen = self.stage.connector(self.features)
            self.hidden, self.memory = self._embedded(self.seen)

    def _embedded(self, seen: Tensor) -> tuple[Tensor, Tensor | None]:
        tags = self.row.places.tag_ids
        tokens = torch.cat((self.row.tokens_T, tags)) if len(tags) else self.row.tokens_T
        return fuse(self.stage.language.embed(tokens), seen, self.row.places, self.rank.run.model.architecture != "nvlm_d")

    def calls(self) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """(part, its forward) of all but the decoder layers."""
        stage, sees = self.stage, bool(self.trains & {"vision", "connector"})
        tiles = torch.randn(len(self.features), self.features.shape[1] + self.rank.run.model.vision.class_token, self.features.shape[2],
                            device=self.rank.device, dtype=self.rank.dtype)
        yield ENCODER, lambda: stage.vision(self.row.tiles_nCPP)
        yield ENCODER_LAYER, lambda: self._through_encoder_layer(tiles)
        yield "connector", lambda: stage.connector(self.features.detach().requires_grad_("vision" in self.trains))
        yield "embedding", lambda: self._both(*self._embedded(leaf(self.seen, sees)))
        yield "output", self._answer

    def _through_encoder_layer(self, tiles: Tensor) -> Tensor:
        trained = "vision" in self.trains
        with torch.set_grad_enabled(trained):
            return self.stage.vision.layers[0](tiles.detach().requires_grad_(trained), self.stage.vision.compiled and not trained)

    def _both(self, hidden: Tensor, memory: Tensor | None) -> Tensor:
        """One tensor to go back from; a memory's gradient costs an addition of nothing."""
        return hidden if memory is None or not memory.requires_grad else torch.cat((hidden, memory))

    def _answer(self) -> Tensor:
        carries = bool(self.trains)
        hidden = leaf(self.hidden[:len(self.hidden) // self.rank.slices], carries)
        normed = self.stage.language.decoder.final_layernorm(hidden)
        return self.stage.language.losses(normed, self.row.at_K, self.row.labels_K)

    def through_layers(self, reads: bool, below: bool) -> tuple[Callable[[], Tensor], int]:
        """(forward through decoder layers of one kind, how many)."""
        count = 1 if reads and not below else CHAIN
        run = few_layers(self.rank.run)
        cross = replace(run.model.cross_attention, layers=tuple(range(count)) if reads else (count,))
        model = replace(run.model, language=replace(run.model.language, layers=count), cross_attention=cross)
        run = replace(run, model=model)
        stage = built(Nvlm(model, run.layout, self.rank.dtype, self.rank.kernels, pre_process=False, post_process=False), run)
        needs, tokens = bool(self.trains & {"vision", "connector"}), len(self.hidden) // self.rank.slices

        def forward() -> Tensor:
            memory = None if self.memory is None else leaf(self.memory[:-(-len(self.memory) // self.rank.slices)], needs)
            return stage.language.run(leaf(self.hidden[:tokens], below), memory, self.row.positions_T, self.row.packed)

        return forward, count
