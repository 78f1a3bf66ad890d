"""Small stand-ins for the checkpoint tests: an engine whose "model" is a table of tensors, in this process, on one rank."""

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor

from nvlm_train.engine.checkpoint import SaveFacts

FINGERPRINT = {"architecture": "nvlm_d", "language.vocab": 1024, "tokenizer": "aa11"}


def join_alone() -> None:
    """A process group of one rank, as an engine would have set up."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


class Collectives:
    """The collective part of the engine interface, over torch.distributed."""

    @property
    def is_main(self) -> bool:
        return dist.get_rank() == 0

    def gather_objects(self, value) -> list:
        out = [None] * dist.get_world_size()
        dist.all_gather_object(out, value)
        return out

    def any_rank(self, flag: bool) -> bool:
        return any(self.gather_objects(flag))

    def barrier(self) -> None:
        dist.barrier()


class TableEngine(Collectives):
    """Holds model tensors by name, one moment tensor each, and an unsharded step count."""

    def __init__(self, seed: int = 0, shapes: dict | None = None, dtype: torch.dtype = torch.float32):
        join_alone()
        draw = torch.Generator().manual_seed(seed)
        shapes = shapes or {"connector.weight": (64, 48), "language.embedding.weight": (1024, 16)}
        self.model = {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}
        self.moments = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
        self.updates, self.notes = seed, {"seed": seed}

    def sharded_state(self, loading: bool, optimizer: bool = True) -> dict:
        model = {name: ShardedTensor.from_rank_offsets(name, value) for name, value in self.model.items()}
        if not optimizer:
            return {"model": model}
        moments = {name: ShardedTensor.from_rank_offsets(f"optimizer.{name}", value) for name, value in self.moments.items()}
        return {"model": model,
                "optimizer": {"moments": moments, "updates": self.updates,
                              "notes": ShardedObject("optimizer.notes", self.notes, (1,), (0,))}}

    def load_state(self, state: dict) -> None:
        self.model = dict(state["model"])
        if "optimizer" in state:
            self.moments, self.updates = dict(state["optimizer"]["moments"]), state["optimizer"]["updates"]
            self.notes = state["optimizer"]["notes"]

    def same_as(self, other: "TableEngine", optimizer: bool = True) -> bool:
        def equal(left: dict, right: dict) -> bool:
            return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)

        moments = equal(self.moments, other.moments) and self.updates == other.updates and self.notes == other.notes
        return equal(self.model, other.model) and (moments or not optimizer)


def facts(cursor: int = 0, **changes) -> SaveFacts:
    """What a run would record."""
    said = {"stage": "pretrain", "config": {"train": {"lr": 1e-3}}, "fingerprint": FINGERPRINT, "cursor": cursor}
    return SaveFacts(**{**said, **changes})
