"""Writing a sharded state: Megatron decides who writes what, torch's writer writes it, in threads of this process.

Megatron's own save (synchronous or not) starts processes: a manager that holds the result queue, and in 0.16 one forked writer
per file. A rank that is killed leaves them behind, where they keep the memory and the output pipes of a dead job; and forking a
process with CUDA and thread pools crashes now and then. Its asynchronous save is deprecated in 0.19 for a library that keeps a
persistent process as well. So of Megatron we take the sharding (factories, who is main replica, the even spread of the writing
over the ranks, the planner) and of torch its distributed checkpoint's file writer. The files are Megatron's `torch_dist` format,
readable by it.

A save falls into three parts, as in both libraries: `plan` (collective, touches the state), `write` (no collective, any thread),
`finish` (main rank, once all have written).
"""

import io
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedBase, ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from nvlm_train.engine.agree import on_every_rank, on_main
from nvlm_train.engine.interface import Engine
from nvlm_train.engine.manifest import FileRecord, record_file
from nvlm_train.errors import TrainingError
from nvlm_train.model.padding import real_shape

COMMON = "common.pt"            # Megatron's name for what is not sharded (both versions read it, 0.16.1 insists on it)
INDEX, KIND = ".metadata", "metadata.json"
Contents = dict[str, dict[str, list]]


class _HeldPlanner(MCoreSavePlanner):
    """A planner that can hold a copy of everything it is about to write, so that training may go on meanwhile."""

    _held: Mapping[MetadataIndex, torch.Tensor | io.BytesIO] = MappingProxyType({})

    def hold(self, plan: SavePlan) -> None:
        """Copy this rank's tensors to host memory (pinned if they come from a GPU) and let go of the state itself.

        Returns once the copies are made.
        """
        tensors = {item.index: super(_HeldPlanner, self).resolve_data(item) for item in plan.items}
        self._held = {index: _host_copy(value) if isinstance(value, torch.Tensor) else value for index, value in tensors.items()}
        if any(isinstance(value, torch.Tensor) and value.is_cuda for value in tensors.values()):
            torch.cuda.synchronize()
        self.state_dict = {}

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        return self._held[write_item.index] if self._held else super().resolve_data(write_item)


class _Writer(FileSystemWriter):
    """torch's writer, which would note the folder's path in the index: that folder is about to be renamed."""

    def storage_meta(self) -> StorageMeta:
        return StorageMeta(save_id=self.save_id)


def _host_copy(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.is_cpu:
        return tensor.clone(memory_format=torch.contiguous_format)
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def contents_of(state: dict) -> Contents:
    """Section -> key -> [dtype, global shape] of a sharded state without factories: this rank's part of it. Shapes are without the
    padding of a layout: of two layouts the files differ in it, the contents do not."""
    return {section: dict(_describe(leaf) for leaf in nested_values(part) if isinstance(leaf, ShardedBase))
            for section, part in state.items()}


def _describe(leaf: ShardedTensor | ShardedObject) -> tuple[str, list]:
    if isinstance(leaf, ShardedObject):
        return leaf.unique_key, ["object", list(leaf.global_shape)]
    return leaf.key, [str(leaf.dtype).removeprefix("torch."), list(real_shape(leaf))]


def merged(parts: list[Contents]) -> Contents:
    """The contents of all ranks together."""
    whole: Contents = {}
    for part in parts:
        for section, keys in part.items():
            whole.setdefault(section, {}).update(keys)
    return {section: dict(sorted(keys.items())) for section, keys in sorted(whole.items())}


def size_of(contents: Contents) -> int:
    """Bytes of all tensors of a state, every one counted once."""
    return sum(prod(shape) * getattr(torch, dtype).itemsize
               for keys in contents.values() for dtype, shape in keys.values() if dtype != "object")


class ShardedWrite:
    """One rank's part in writing a sharded state into an existing, empty folder.

    Made by all ranks together (a collective). `hold` copies the tensors first, so that they may change before they are written.
    contents: what the state of all ranks holds. Raises TrainingError on every rank if one of them cannot take part.
    """

    def __init__(self, engine: Engine, state: dict, folder: Path, save_id: str, hold: bool):
        self._folder, self._engine = folder, engine
        self._planner = _HeldPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        # Copying ahead would touch the GPU from the writing thread; a held state has nothing left to copy.
        self._writer = _Writer(folder, thread_count=1, per_thread_copy_ahead=0 if hold else 10_000_000)
        self._writer.save_id = save_id

        def shard() -> Contents:
            nonlocal sharded
            sharded, self._common = _spread(state)
            return contents_of(sharded)

        sharded: dict = {}
        self.contents = merged(on_every_rank(engine, "sharding the state", shard, TrainingError))
        plans = on_every_rank(engine, "planning the save", lambda: self._local_plan(sharded), TrainingError)
        on_main(engine, "planning the save", lambda: self._set_index(plans), TrainingError)
        self._plan = self._planner.finish_plan(self._writer.prepare_global_plan(plans)[torch.distributed.get_rank()])
        if hold:
            on_every_rank(engine, "copying the state to host memory", lambda: self._planner.hold(self._plan), TrainingError)

    def _local_plan(self, sharded: dict) -> SavePlan:
        flat, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, keep_only_main_replica=True)
        self._planner.set_up_planner(mcore_to_pyt_state_dict(flat), is_coordinator=self._engine.is_main)
        return self._planner.create_local_plan()

    def _set_index(self, plans: list[SavePlan]) -> None:
        self._index = self._planner.create_global_plan(plans)[1]

    def write(self) -> tuple[list[WriteResult], dict[str, FileRecord]]:
        """Write this rank's files, durably. No collective; may run in any thread. Returns what `finish` wants from every rank."""
        results = self._writer.write_data(self._plan, self._planner).value() if self._plan.items else []
        names = {result.storage_data.relative_path for result in results}
        if self._engine.is_main:
            (self._folder / COMMON).write_bytes(self._common)
            names.add(COMMON)
        return results, {name: record_file(self._folder / name, durable=True) for name in sorted(names)}

    def finish(self, written: list[tuple[list[WriteResult], dict[str, FileRecord]]]) -> dict[str, FileRecord]:
        """On the main rank, once every rank has written: the index. Returns the records of all files of the save."""
        self._writer.finish(self._index, [results for results, _ in written])
        save_config(CheckpointingConfig("torch_dist", 1), str(self._folder))
        records = {name: record for _, rank_records in written for name, record in rank_records.items()}
        return records | {name: record_file(self._folder / name, durable=True) for name in (INDEX, KIND)}


def _spread(state: dict) -> tuple[dict, bytes]:
    """A state's sharded part, its writing spread evenly over the ranks that hold copies, and its common part, serialised."""
    sharded, common = save_preprocess(state, validate_access_integrity=False)   # the next line does validate
    FullyParallelSaveStrategyWrapper(TorchDistSaveShardedStrategy("torch_dist", 1)).apply_saving_parallelization(sharded)
    buffer = io.BytesIO()
    torch.save(common, buffer)
    return sharded, buffer.getvalue()
