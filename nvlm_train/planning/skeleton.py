"""Any rank of a run without its machines: the real model, gradient buffers and optimizer on tensors without memory, and one step of
Megatron's own schedule over them, whose shapes and bytes are exact.

What is simulated is a GPU's way (bf16, torch's fused kernels). Kernels' inner workspaces, the allocator's rounding, the reduction of
gradients and what CUDA and NCCL take for themselves are not seen.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from nvlm_train.config.fp8_layers import by_torch
from nvlm_train.config.schema import Run
from nvlm_train.config.split import memory_budget
from nvlm_train.contracts import PackedBatch
from nvlm_train.engine.megatron import bare_stages, whole_model_names
from nvlm_train.engine.optimizer import build_optimizer, data_parallel
from nvlm_train.geometry import geometry_of
from nvlm_train.kernels import KernelPlan
from nvlm_train.model.context import Context
from nvlm_train.model.freeze import set_trainable
from nvlm_train.model.nvlm import Nvlm, to_device
from nvlm_train.model.parameters import trained_names
from nvlm_train.parallel.groups import Groups
from nvlm_train.planning.live import Live, Saved
from nvlm_train.planning.meta import META, machine
from nvlm_train.planning.rows import RowSize, fullest


def gpu_plan(run: Run) -> KernelPlan:
    """torch's kernels as a GPU takes them."""
    plan = KernelPlan("cuda", attention="varlen", cross_attention="varlen", wgrad="product")
    if by_torch(run.model, run.layout.tensor):
        plan = replace(plan, linear="fp8", fp8=run.model.fp8)
    return plan if run.model.compile == "off" else replace(plan, elementwise="compiled", rope="compiled")


@dataclass(frozen=True)
class Skeleton:
    """One rank: its (virtual) stages, wrapped for data parallelism, and the optimizer over them."""

    run: Run
    groups: Groups
    chunks: list
    optimizer: object

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(whole-model name, parameter), in the modules' order."""
        for chunk in self.chunks:
            yield from whole_model_names(chunk.module)


@dataclass
class Step:
    """What a simulated step did.

    peak: bytes alive at most beside parameters, buffers and inputs; received, sent: shapes between stages, of each forward.
    saved: bytes that a forward of each (virtual) stage kept for its backward. gradients: parameters that got one, with its shape.
    """

    peak: int = 0
    received: list[tuple[int, ...]] = field(default_factory=list)
    sent: list[tuple[int, ...]] = field(default_factory=list)
    saved: dict[int, int] = field(default_factory=dict)
    gradients: dict[str, tuple[int, ...]] = field(default_factory=dict)


@contextmanager
def skeleton(run: Run, rank: int, world: int) -> Iterator[Skeleton]:
    """`rank` of `world`, until the end of the context (see `meta.machine` for what it raises)."""
    with machine(run.layout, rank, world) as groups:
        chunks = data_parallel(frozen_stages(run), run.layout.overlap and groups.data_size > 1)
        yield Skeleton(run, groups, chunks, build_optimizer(chunks, run.train, bf16=True, adam=gpu_plan(run).adam))


def frozen_stages(run: Run) -> list[Nvlm]:
    """The (virtual) stages of the rank that `meta.machine` pretends to be, frozen and trained as the run says."""
    names, stages = trained_names(run.model, tuple(run.train.trainable)), bare_stages(run, torch.bfloat16, gpu_plan(run))
    for stage in stages:
        set_trainable(whole_model_names(stage), run.train.trainable)
        stage.route_gradients(names)
    return stages


def standing_bytes(chunks: list, optimizer) -> dict[str, int]:
    """What stands through the whole run on a rank, of a skeleton's or an engine's chunks and optimizer.

    weights: parameters, the trained ones in data parallelism's padded buffer; gradients: its fp32 buffer; optimizer: this rank's share
    of master weights, where they are copies, in fp32, and two moments (`AdamW` makes them in its first step).
    """
    buffers = [buffer for chunk in chunks for buffer in chunk.buffers]
    frozen = sum(_bytes(param) for chunk in chunks for param in chunk.module.parameters() if not param.requires_grad)
    parts = [part for part in getattr(optimizer, "chained_optimizers", [optimizer]) if not getattr(part, "is_stub_optimizer", False)]
    copies, own = ([param for part in parts for group in getattr(part, groups) for param in group if param is not None]
                   for groups in ("shard_fp32_from_float16_groups", "shard_fp32_groups"))
    each = next((getattr(part.optimizer, "moments", torch.float32).itemsize for part in parts), 0)
    return {"weights": frozen + sum(_bytes(buffer.param_data) for buffer in buffers),
            "gradients": sum(_bytes(buffer.grad_data) for buffer in buffers),
            "optimizer": sum(map(_bytes, copies)) + 2 * each * sum(tensor.numel() for tensor in (*copies, *own))}


def make_row(run: Run, size: RowSize, device: torch.device = META) -> PackedBatch:
    """A row of these sizes: one sample, its pictures first. device: of its pixels."""
    T, each, P = size.tokens, geometry_of(run.model).tokens, run.model.vision.tile_size
    weights = (torch.arange(T) < size.supervised).float()
    starts = torch.where(torch.arange(size.tiles) < size.shown, torch.arange(size.tiles) * each, -1)
    kept, bound, step = size.tiles - size.shown, max(size.spans - 1, 0), run.model.tags.max_tokens
    reads = [(at * step, at * step + step, at, at + 1) for at in range(bound)] + [(bound * step, T, 0, kept)] * (size.spans > 0)
    return PackedBatch(
        tokens_T=torch.zeros(T, dtype=torch.long), positions_T=torch.arange(T), labels_T=torch.zeros(T, dtype=torch.long),
        loss_weights_T=weights, cu_seqlens=torch.tensor([0, T], dtype=torch.int32),
        tiles_nCPP=torch.zeros(size.tiles, 3, P, P, dtype=torch.uint8, device=device), tile_starts_n=starts,
        reads_s4=torch.tensor(reads, dtype=torch.long).view(-1, 4),
        memory_tags_mG=torch.zeros(kept, size.tags // max(kept, 1), dtype=torch.long))


def simulate(rank: Skeleton, rows: int, size: RowSize | None = None) -> Step:
    """One step over `rows` equal rows, by default the fullest, by Megatron's schedule (1F1B, interleaved with virtual stages).

    Where context-parallel ranks share a row, it is this rank's part. Of each stage's first row it is counted what it keeps. Whoever
    looks on at that hands the backward pass copies of the weights, which do not know where their gradients go; so these rows come in
    addition, in front.
    """
    run, seen, ranks = rank.run, Step(), rank.groups.context_size
    context = Context(rank.groups.context_group, rank.groups.context_rank, ranks) if ranks > 1 else None
    rows += run.layout.pipeline if run.layout.virtual > 1 else 1
    row = make_row(run, size or fullest(run))
    standing = _standing(rank, row)
    live, one = Live(ignore=standing), torch.ones((), dtype=torch.int)
    for name, param in rank.parameters():
        if param.requires_grad:
            param.register_post_accumulate_grad_hook(lambda p, name=name: seen.gradients.__setitem__(name, tuple(p.shape)))

    def loss_func(losses, **_):
        return losses.sum(), one, {}

    def forward_step(iterator, chunk):
        whole, stage = next(iterator), chunk.module
        share = context and context.share_of(whole)
        moved = to_device(share.take(whole) if share else whole, META, geometry_of(run.model).tokens, share=share)
        if not stage.pre_process:
            seen.received.append(tuple(stage._received.shape))
        number = rank.chunks.index(chunk)
        saved = Saved(ignore=[*standing, *(value for value in vars(moved).values() if isinstance(value, Tensor))])
        with saved() if number not in seen.saved else nullcontext():
            out = chunk(moved)
        seen.saved.setdefault(number, saved.bytes)
        if not stage.post_process:
            seen.sent.append(tuple(out.shape))
        return out, loss_func

    for chunk in rank.chunks:
        chunk.train()
        chunk.zero_grad_buffer()
        chunk.ddp_config.overlap_grad_reduce = False    # nothing is sent here, and it insists on gradients of all weights in all rows
    iterators = [iter([row] * rows) for _ in rank.chunks]
    length = run.data.pack_tokens // ranks + memory_budget(run.model, run.data.pack_tiles, run.layout.tensor)
    with live:
        get_forward_backward_func()(
            forward_step_func=forward_step, data_iterator=iterators if len(iterators) > 1 else iterators[0], model=rank.chunks,
            num_microbatches=rows, seq_length=length * ranks, micro_batch_size=1, forward_only=False)
    seen.peak = live.peak
    return seen


def _standing(rank: Skeleton, row: PackedBatch) -> list[Tensor]:
    """Tensors that a step finds and leaves."""
    buffers = [buffer for chunk in rank.chunks for buffer in chunk.buffers]
    own = [tensor for chunk in rank.chunks for tensor in (*chunk.module.parameters(), *chunk.module.buffers())]
    return [*own, *(b.param_data for b in buffers), *(b.grad_data for b in buffers), row.tiles_nCPP]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
