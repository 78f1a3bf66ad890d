"""What every engine does alike: join the job, sum up what ranks saw of a step, and agree with each other."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from nvlm_train.config.schema import Run
from nvlm_train.config.split import memory_budget
from nvlm_train.contracts import PackedBatch, StepBatch, StepReport
from nvlm_train.engine.feed import shared
from nvlm_train.engine.folders import is_checkpoint
from nvlm_train.engine.stopwatch import Stopwatch
from nvlm_train.engine.weights_folder import is_weights_folder, refuse_unimported
from nvlm_train.geometry import geometry_of
from nvlm_train.model.init import initialise
from nvlm_train.model.weights import load_component
from nvlm_train.parallel import groups as parallel
from nvlm_train.parallel.device import choose_device, choose_dtype, send


@dataclass(frozen=True)
class Seen:
    """What a step did, over all ranks, on the host. by_source: weighted loss sum and weight sum of each source; the rest as in
    `contracts.StepReport`."""

    loss: float
    weight: float
    grad_norm: float
    by_source: Sequence[tuple[float, float]]
    tokens: int
    padded_tokens: int
    tiles: int
    rows: int


class Job:
    """The part of an engine (`engine.interface.Engine`) that knows nothing of its optimizer. Made on every rank with the same run."""

    def __init__(self, run: Run):
        self.run = run
        self.device = choose_device(run.run.device)
        self.dtype = choose_dtype(run.model.dtype, self.device)
        parallel.start(self.device, run.run.timeout_s)
        self.groups = parallel.lay_out(run.layout, run.train.seed)
        self.rank, self.is_main = self.groups.rank, self.groups.rank == 0
        self.data_rank, self.data_size = self.groups.data_rank, self.groups.data_size
        self.reads_data = self.groups.rank == self.groups.model_ranks[0]
        # Sequence parallelism shares out a row's tokens, and fp8 products want 16 of them at a time (mxfp8: 32).
        self.token_multiple = (run.layout.tensor if run.layout.sequence else 1) * (1 if run.model.fp8 == "none" else 32)
        self._sources = sorted({*run.data.blend, *run.data.validation})
        self._memory_tokens = memory_budget(run.model, run.data.pack_tiles, run.layout.tensor)
        self._tile_tokens = geometry_of(run.model).tokens
        self._watch = Stopwatch(self.device)

    @property
    def work_s(self) -> float:
        """Seconds of the last step from where all ranks began together to where this one waited for the gradients of all."""
        return self._watch.read()

    def shared(self, batches: Iterable[StepBatch] | None) -> Iterator[StepBatch]:
        """Batches of the rank that reads, on every rank of its replica (see `feed`)."""
        return shared(batches, self.groups, self.device)

    def _fill_in(self, stage) -> None:
        """Give a stage (an Nvlm, or as much of one as `initialise` needs) its initial values, and the weights that plain files have.

        Checkpoints and imported folders need all ranks: whoever starts the run loads them (training/backbones.py).
        """
        initialise(stage, self.run.model, self.run.train.seed)
        for component in ("vision", "connector", "language"):
            path = getattr(self.run.model, component).weights
            if path is not None and not is_weights_folder(path) and not is_checkpoint(path):
                refuse_unimported(path)
                load_component(stage, component, path)

    # -- sums over a step's rows and all ranks ------------------------------------------------------------------------

    def _sums(self, row: PackedBatch, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(weighted loss sum of the row, float64 [sources, 2] of loss and weight sums per source)."""
        at = row.loss_weights_T.nonzero()[:, 0]
        if not len(at):
            return losses.sum() * 0.0, torch.zeros(len(self._sources), 2, dtype=torch.float64, device=losses.device)
        segment = torch.searchsorted(row.cu_seqlens[1:].long(), at, right=True)
        source = send(torch.tensor([self._sources.index(s) for s in row.sources])[segment], losses.device)
        weights = send(row.loss_weights_T[at], losses.device)
        weighted = losses * weights
        sums = torch.zeros(len(self._sources), 2, dtype=torch.float64, device=losses.device)
        sums.index_add_(0, source, torch.stack((weighted.detach(), weights), 1).double())
        return weighted.sum(), sums

    def _reduce(self, values: torch.Tensor, held: bool) -> torch.Tensor:
        """Sum over all ranks that hold something; what a replica knows once, one of its ranks may hold."""
        total = send(values, self.device) if held else torch.zeros_like(values, device=self.device)
        dist.all_reduce(total)
        return total

    def _global_weight(self, rows: Sequence[PackedBatch]) -> torch.Tensor:
        """float64 [], on the device: the step divides by it, nobody reads it before the end."""
        local = torch.stack([torch.zeros((), dtype=torch.float64), *(row.loss_weights_T.sum(dtype=torch.float64) for row in rows)])
        return self._reduce(local.sum(), self.reads_data)

    def _reduce_sums(self, reports: Sequence[torch.Tensor]) -> torch.Tensor:
        """float64 [sources, 2] loss and weight sums of all replicas, from the rows' reports, which only last stages have."""
        sums = sum(reports) if reports else torch.zeros(len(self._sources), 2, dtype=torch.float64, device=self.device)
        return self._reduce(sums, self.groups.holds_losses)

    def _seen(self, rows: Sequence[PackedBatch], weight: torch.Tensor, reports: Sequence[torch.Tensor],
              square: torch.Tensor | None = None) -> Seen:
        """What a step did, over all ranks: the one place of it where the host waits for the device. square: of the gradients' norm,
        float64 [1], the same on all ranks."""
        facts = torch.tensor([sum(row.real_tokens for row in rows), sum(len(row.tokens_T) for row in rows),
                              sum(len(row.tile_starts_n) for row in rows), len(rows)], dtype=torch.float64)
        square = weight.new_zeros(1) if square is None else square
        sums, facts = self._reduce_sums(reports), self._reduce(facts, self.reads_data)
        *sums, weight, square, tokens, padded, tiles, count = torch.cat((sums.flatten(), weight[None], square, facts)).tolist()
        by_source = list(zip(sums[::2], sums[1::2], strict=True))
        return Seen(self._loss(by_source, weight), weight, math.sqrt(square), by_source, int(tokens), int(padded), int(tiles), int(count))

    @staticmethod
    def _loss(by_source: Sequence[tuple[float, float]], weight: float) -> float:
        """Weighted mean over the step. by_source: loss and weight sum of each source."""
        return sum(loss for loss, _ in by_source) / weight if weight else 0.0

    def _report(self, seen: Seen, norm: float, applied: bool) -> StepReport:
        return StepReport(
            loss=seen.loss, grad_norm=norm, weight=seen.weight, tokens=seen.tokens, padded_tokens=seen.padded_tokens,
            tiles=seen.tiles, rows=seen.rows, skipped=not applied, source_losses=self._by_name(seen.by_source))

    def _by_name(self, by_source: Iterable[tuple[float, float]]) -> dict[str, tuple[float, float]]:
        return {name: (s, w) for name, (s, w) in zip(self._sources, by_source) if w}

    # -- agreement ----------------------------------------------------------------------------------------------------

    def gather_objects(self, value) -> list:
        """One Python object of every rank, in rank order."""
        out = [None] * self.groups.world
        dist.all_gather_object(out, value)
        return out

    def any_rank(self, flag: bool) -> bool:
        """True everywhere if true anywhere. Between hosts, so that nobody waits for what devices have still to do."""
        seen = torch.tensor(int(flag))
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        return bool(seen)

    def barrier(self) -> None:
        dist.barrier()
