"""Process groups: the only reader and writer of Megatron's global parallel state.

`start` opens the job's process group (`parallel.job` joins the job), `lay_out` makes the groups of one layout, and everybody else is
handed the `Groups`. Stages with different layouts call `lay_out` again after `clear`.
"""

import datetime
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state as ps
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from nvlm_train.config.schema import Layout
from nvlm_train.errors import ConfigError
from nvlm_train.parallel.job import Job, join


@dataclass(frozen=True)
class Groups:
    """Where this rank stands. `model_group` is one replica of the model (tensor x context x pipeline ranks), `stage_group` the part of it
    that holds the same pipeline stage (tensor x context)."""

    rank: int
    world: int
    tensor_rank: int
    tensor_size: int
    pipeline_rank: int
    pipeline_size: int
    context_rank: int
    context_size: int
    data_rank: int
    data_size: int
    tensor_group: dist.ProcessGroup
    context_group: dist.ProcessGroup
    stage_group: dist.ProcessGroup
    model_group: dist.ProcessGroup
    data_group: dist.ProcessGroup

    @property
    def model_ranks(self) -> list[int]:
        """Global ranks of this rank's model replica; the first one reads its data."""
        return dist.get_process_group_ranks(self.model_group)

    @property
    def last_stage_rank(self) -> int:
        """Global rank of the last pipeline stage of this rank's replica, tensor and context rank 0."""
        return self.model_ranks[-self.tensor_size * self.context_size]

    @property
    def holds_losses(self) -> bool:
        """Whether this rank's losses count: the last stage's, once for each part of a row."""
        return self.pipeline_rank == self.pipeline_size - 1 and self.tensor_rank == 0


def start(device: torch.device, timeout_s: int, job: Job | None = None) -> None:
    """Open the process group of all ranks, once. job: what `join` gave; by default it is joined here."""
    if dist.is_initialized():
        return
    job = job or join(timeout_s)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=job.store, rank=job.place.rank, world_size=job.place.world,
                            timeout=datetime.timedelta(seconds=timeout_s))


def lay_out(layout: Layout, seed: int) -> Groups:
    """Make the groups of a layout over all ranks of the job.

    Raises ConfigError when the ranks cannot be divided by tensor x pipeline x context.
    """
    world = dist.get_world_size()
    replica = layout.tensor * layout.pipeline * layout.context
    if world % replica:
        context = f" x layout.context={layout.context}" if layout.context > 1 else ""
        raise ConfigError(f"layout.tensor={layout.tensor} x layout.pipeline={layout.pipeline}{context} needs a multiple of {replica} "
                          f"processes, but there are {world}: start torchrun with --nproc-per-node {replica}, or change the layout")
    ps.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor, pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual if layout.virtual > 1 else None,
        context_parallel_size=layout.context)
    model_parallel_cuda_manual_seed(seed)
    shared = layout.context > 1
    return Groups(
        rank=dist.get_rank(), world=world,
        tensor_rank=ps.get_tensor_model_parallel_rank(), tensor_size=layout.tensor,
        pipeline_rank=ps.get_pipeline_model_parallel_rank(), pipeline_size=layout.pipeline,
        context_rank=ps.get_context_parallel_rank(), context_size=layout.context,
        data_rank=ps.get_data_parallel_rank(), data_size=ps.get_data_parallel_world_size(),
        tensor_group=ps.get_tensor_model_parallel_group(), context_group=ps.get_context_parallel_group(),
        stage_group=ps.get_tensor_and_context_parallel_group() if shared else ps.get_tensor_model_parallel_group(),
        model_group=_replica_group(layout, world) if shared else ps.get_model_parallel_group(),
        data_group=ps.get_data_parallel_group())


def _replica_group(layout: Layout, world: int) -> dist.ProcessGroup:
    """This rank's replica. Megatron's own leaves its context ranks out; ranks count tensor, context, data, pipeline."""
    each, stage = layout.tensor * layout.context, world // layout.pipeline
    replicas = [[begin + first + rank for begin in range(0, world, stage) for rank in range(each)] for first in range(0, stage, each)]
    made = [ps.create_group(ranks, group_desc="REPLICA_GROUP") for ranks in replicas]     # every rank makes all of them
    return made[dist.get_rank() % stage // each]


def stage_flags(layout: Layout, vp_stage: int | None) -> tuple[bool, bool]:
    """(first, last): whether this rank's (virtual) stage embeds tokens, and whether it answers."""
    return (ps.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            ps.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage))


def alone_and_tensor() -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """A group of this rank only (that of expert parallelism, which no layout here has), and its tensor-parallel one."""
    return ps.get_expert_model_parallel_group(), ps.get_tensor_model_parallel_group()


def clear() -> None:
    """Give up the layout's groups; the job itself goes on.

    Megatron only forgets them, and torch keeps them: twenty groups over gloo, each with three threads that wake up a hundred times a
    second. NCCL's are left alone: taking one down waits for what was begun on it, also where another rank has failed.
    """
    made = ps._global_process_group_list if dist.is_initialized() else None     # with the job they have gone already
    for group in made or ():
        if group is not None and dist.get_backend(group) == "gloo":     # None: the whole job
            dist.destroy_process_group(group)
    ps.destroy_model_parallel()


def stop() -> None:
    """Leave the job, and give up its layout's groups."""
    clear()
    if dist.is_initialized():
        dist.destroy_process_group()
