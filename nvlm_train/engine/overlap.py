"""Data-parallel messages beside the computing: gradients are summed while the last row's backward goes on, updated weights handed out
while the next step's first row goes forward. Both in Megatron's buckets of parameters, so that losses do not change.

The second differs from Megatron's own in when the messages are sent: all of them at the end of a step, where every replica is. Whoever
uses weights between two steps, perhaps on one replica alone (a checkpoint, an answer to a question), waits for what is on its way
(`settle`) and sends nothing itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

from nvlm_train.model.nvlm import Nvlm


def overlapping() -> DistributedDataParallelConfig:
    """`align_param_gather` has a module's weights waited for, and nothing sent, where Megatron would send the next bucket's."""
    return DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True, overlap_grad_reduce=True,
                                         overlap_param_gather=True, align_param_gather=True)


def prepare(chunks: Sequence[DistributedDataParallel]) -> None:
    """Have Megatron's schedule send gradients beside the last row's backward only.

    A bucket goes when each of its weights has its gradient of the last row: all of them must have one, in rows without pictures too.
    """
    stages: list[Nvlm] = [chunk.module for chunk in chunks]
    for stage in stages:
        stage.use_every_weight()
    stages[0].config.no_sync_func = _none_syncs(chunks)
    for group in _groups(chunks):
        group.param_gather_dispatched = True       # every replica holds all weights: no forward has to ask for them


def _none_syncs(chunks: Sequence[DistributedDataParallel]):
    @contextmanager
    def no_sync() -> Iterator[None]:
        with ExitStack() as stack:
            for chunk in chunks:
                stack.enter_context(chunk.no_sync())
            yield
    return no_sync


def hand_out(chunks: Sequence[DistributedDataParallel]) -> None:
    """Send all updated weights to all replicas, those first that a forward needs first. A collective that waits for nothing."""
    for chunk in chunks:
        for group in reversed(chunk.bucket_groups):        # Megatron's first bucket is of the last layers
            group.start_param_sync()


def settle(chunks: Sequence[DistributedDataParallel]) -> None:
    """Wait for the weights that are on their way. Afterwards every replica has all of them."""
    for group in _groups(chunks):
        if group.param_gather_handle is not None:
            group.param_gather_handle.wait()
            group.param_gather_handle = None


def _groups(chunks: Sequence[DistributedDataParallel]) -> Iterator:
    for chunk in chunks:
        yield from chunk.bucket_groups
