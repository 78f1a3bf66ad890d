"""The Megatron engine: the model laid out over tensor, pipeline and data parallel ranks, and one optimizer step on it."""

import math
from collections.abc import Collection, Iterable, Iterator

import torch
import torch.distributed as dist
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func

from nvlm_train.config.schema import Run
from nvlm_train.config.split import memory_budget
from nvlm_train.contracts import PackedBatch, StepBatch, StepReport
from nvlm_train.engine.feed import shared
from nvlm_train.engine.folders import is_checkpoint
from nvlm_train.engine.frozen import encoder_fingerprint, see
from nvlm_train.engine.optimizer import build_optimizer, data_parallel, set_rates, update
from nvlm_train.engine.weights_folder import WeightsFolder, is_weights_folder, refuse_unimported
from nvlm_train.geometry import geometry_of
from nvlm_train.model.freeze import refuse_unmatched, set_trainable
from nvlm_train.model.init import initialise
from nvlm_train.model.nvlm import Nvlm, to_device
from nvlm_train.model.weights import fill, load_component
from nvlm_train.parallel import groups as parallel
from nvlm_train.parallel.device import choose_device, choose_dtype

_OPTIMIZER_SHARDING = {"distrib_optim_sharding_type": "fully_reshardable", "distrib_optim_fully_reshardable_mem_efficient": False}


def whole_model_names(stage: Nvlm):
    """(name with whole-model layer numbers, parameter) of a stage."""
    lead, layers = "language.decoder.layers.", stage.language.decoder.layers
    first_layer = layers[0].layer_number - 1 if len(layers) else 0
    for name, param in stage.named_parameters():
        if name.startswith(lead):
            local, rest = name[len(lead):].split(".", 1)
            name = f"{lead}{int(local) + first_layer}.{rest}"
        yield name, param


def bare_stages(run: Run, dtype: torch.dtype, kernels: str) -> list[Nvlm]:
    """The (virtual) pipeline stages of this rank, their values still to come."""
    memory = memory_budget(run.model, run.data.pack_tiles, run.layout.tensor)
    return [Nvlm(run.model, run.layout, dtype, kernels, *parallel.stage_flags(run.layout, vp_stage), vp_stage, memory)
            for vp_stage in (range(run.layout.virtual) if run.layout.virtual > 1 else [None])]


class MegatronEngine:
    """See `engine.interface.Engine`. Build it on every rank of the job with the same run."""

    def __init__(self, run: Run):
        self.run = run
        self.device = choose_device(run.run.device)
        self.dtype = choose_dtype(run.model.dtype, self.device)
        parallel.start(self.device, run.run.timeout_s)
        self.groups = parallel.lay_out(run.layout, run.train.seed)
        self.is_main = self.groups.rank == 0
        self.data_rank, self.data_size = self.groups.data_rank, self.groups.data_size
        self.reads_data = self.groups.rank == self.groups.model_ranks[0]
        self._sources = sorted({*run.data.blend, *run.data.validation})
        self._schedule = get_forward_backward_func()
        self._build()

    # -- building ---------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        run = self.run
        self._memory_tokens = memory_budget(run.model, run.data.pack_tiles, run.layout.tensor)
        self._tile_tokens = geometry_of(run.model).tokens
        kernels = "torch" if run.model.kernels == "auto" else run.model.kernels
        stages = bare_stages(run, self.dtype, kernels)
        for stage in stages:
            initialise(stage, run.model, run.train.seed)
            for component in ("vision", "connector", "language"):
                path = getattr(run.model, component).weights
                # Checkpoints and imported folders need all ranks: whoever starts the run loads them (training/backbones.py).
                if path is not None and not is_weights_folder(path) and not is_checkpoint(path):
                    refuse_unimported(path)
                    load_component(stage, component, path)
        names = self._set_trainable(stages)
        self.config = stages[0].config
        self.config.finalize_model_grads_func = lambda models, tokens=None, **extra: finalize_model_grads(models, None, **extra)
        self.chunks = data_parallel(stages)
        for key in ("trainable", "lr_multipliers"):
            refuse_unmatched(getattr(run.train, key), names, f"train.{key}")
        self.optimizer = build_optimizer(self.chunks, run.train, bf16=self.dtype == torch.bfloat16)

    def _set_trainable(self, stages: list[Nvlm]) -> list[str]:
        """Freeze by pattern. Returns every parameter name of the whole model."""
        mine = []
        for stage in stages:
            named = list(whole_model_names(stage))
            set_trainable(named, self.run.train.trainable)
            mine += [(name, param.requires_grad) for name, param in named]
        names = dict(pair for part in self.gather_objects(mine) for pair in part)
        trained = {name for name, trains in names.items() if trains}
        for stage in stages:
            stage.route_gradients(trained)
        return sorted(names)

    def close(self) -> None:
        """Give up this layout's groups and memory; the job stays joined, another stage may build its engine."""
        self.chunks, self.optimizer = [], None
        parallel.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def shared(self, batches: Iterable[StepBatch] | None) -> Iterator[StepBatch]:
        """Batches of the rank that reads, on every rank of its replica (see `feed`)."""
        return shared(batches, self.groups, self.device)

    # -- one step ---------------------------------------------------------------------------------------------------

    def _run_schedule(self, rows, loss_func, want: str = "loss", at=None, forward_only=False) -> list:
        """Megatron's schedule over rows; what the last stage's loss_func reported, in row order."""

        def forward_step(iterator, stage):
            row = next(iterator)
            return stage(to_device(row, self.device, self._tile_tokens, at), want), lambda output, **_: loss_func(row, output)

        rows = list(rows)
        iterators = [iter(rows) for _ in self.chunks]
        return self._schedule(
            forward_step_func=forward_step, data_iterator=iterators if len(iterators) > 1 else iterators[0], model=self.chunks,
            num_microbatches=len(rows), seq_length=self.run.data.pack_tokens + self._memory_tokens, micro_batch_size=1, forward_only=forward_only,
            collect_non_loss_data=want == "logits")

    def _sums(self, row: PackedBatch, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(weighted loss sum of the row, float64 [sources, 2] of loss and weight sums per source)."""
        at = row.loss_weights_T.nonzero()[:, 0]
        if not len(at):
            return losses.sum() * 0.0, torch.zeros(len(self._sources), 2, dtype=torch.float64, device=losses.device)
        segment = torch.searchsorted(row.cu_seqlens[1:].long(), at, right=True)
        source = torch.tensor([self._sources.index(s) for s in row.sources])[segment].to(losses.device)
        weights = row.loss_weights_T[at].to(losses.device)
        weighted = losses * weights
        sums = torch.zeros(len(self._sources), 2, dtype=torch.float64, device=losses.device)
        sums.index_add_(0, source, torch.stack((weighted.detach(), weights), 1).double())
        return weighted.sum(), sums

    def _reduce(self, values: torch.Tensor, held: bool) -> torch.Tensor:
        """Sum over all ranks that hold something; exactly one rank of a replica may hold a value."""
        total = values.to(self.device) if held else torch.zeros_like(values, device=self.device)
        dist.all_reduce(total)
        return total

    def _global_weight(self, rows: Iterable[PackedBatch]) -> float:
        local = sum(float(row.loss_weights_T.sum(dtype=torch.float64)) for row in rows)
        return float(self._reduce(torch.tensor(local, dtype=torch.float64), self.reads_data))

    def _reduce_sums(self, reports: list) -> list[list[float]]:
        """[sources, 2] loss and weight sums of all replicas, from the rows' reports, which only last stages have."""
        sums = sum(reports) if reports else torch.zeros(len(self._sources), 2, dtype=torch.float64, device=self.device)
        return self._reduce(sums, self.groups.rank == self.groups.last_stage_rank).tolist()

    def train_step(self, batch: StepBatch, lr: float) -> StepReport:
        """Forward and backward over all rows, then one update. A step without any supervised token is refused."""
        rows = list(batch.rows)
        weight = self._global_weight(rows)
        for chunk in self.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        one = torch.ones((), dtype=torch.int, device=self.device)  # Megatron's own token count, unused

        def loss_func(row, losses):
            total, sums = self._sums(row, losses)
            return total / weight if weight else total, one, sums

        reports = self._run_schedule(rows, loss_func)
        facts = [sum(row.real_tokens for row in rows), sum(len(row.tokens_T) for row in rows),
                 sum(len(row.tile_starts_n) for row in rows), len(rows)]
        tokens, padded, tiles, row_count = self._reduce(torch.tensor(facts), self.reads_data).tolist()
        by_source = self._reduce_sums(reports)
        loss = sum(s for s, _ in by_source) / weight if weight else 0.0
        set_rates(self.optimizer, lr, self.run.train.weight_decay)
        norm, applied = update(self.optimizer, self.run.train.clip_grad, math.isfinite(loss) and weight > 0)
        return StepReport(
            loss=loss, grad_norm=norm, weight=weight, tokens=tokens, padded_tokens=padded, tiles=tiles, rows=row_count,
            skipped=not applied,
            source_losses={name: (s, w) for name, (s, w) in zip(self._sources, by_source) if w})

    # -- without gradients ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, rows: Iterable[PackedBatch]) -> dict[str, tuple[float, float]]:
        """Source -> (weighted loss sum, weight sum) over all ranks' rows."""
        self._eval()
        one = torch.ones((), dtype=torch.int, device=self.device)

        def loss_func(row, losses):
            total, sums = self._sums(row, losses)
            return total, one, sums

        reports = self._run_schedule(rows, loss_func, forward_only=True)
        return {name: (s, w) for name, (s, w) in zip(self._sources, self._reduce_sums(reports)) if w}

    @torch.no_grad()
    def logits(self, row: PackedBatch, at: torch.Tensor) -> torch.Tensor:
        """float32 [K, V] at row positions `at`, on every rank of the replica."""
        self._eval()
        copies = self.groups.pipeline_size if len(self.chunks) > 1 else 1  # the interleaved schedule wants full rounds
        reports = self._run_schedule([row] * copies, lambda _, output: output.float(), want="logits", at=at, forward_only=True)
        vocab = self.run.model.language.vocab
        whole = self._whole_vocabulary(reports[0], vocab) if reports else torch.empty(len(at), vocab, device=self.device)
        if self.groups.pipeline_size > 1:
            dist.broadcast(whole, self.groups.last_stage_rank, group=self.groups.model_group)
        return whole

    def _whole_vocabulary(self, part: torch.Tensor, vocab: int) -> torch.Tensor:
        """[K, V] from every tensor-parallel rank's slice of the padded vocabulary."""
        parts = [part]
        if self.groups.tensor_size > 1:
            parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.groups.tensor_size)]
            dist.all_gather(parts, part.contiguous(), group=self.groups.tensor_group)
        return torch.cat(parts, -1)[:, :vocab].contiguous()

    def see(self, row: PackedBatch) -> torch.Tensor | None:
        """[n, L, C] features of a row's tiles, in host memory, on ranks that hold the encoder."""
        self._eval()
        return see(self.stages(), row, self.device)

    def encoder_fingerprint(self) -> str:
        """Names the encoder's weights, whatever the layout (see `frozen`)."""
        return encoder_fingerprint(self.stages(), self.device)

    def _eval(self) -> None:
        for chunk in self.chunks:
            chunk.eval()

    # -- state ------------------------------------------------------------------------------------------------------

    def stages(self) -> list[Nvlm]:
        """This rank's (virtual) pipeline stages, unwrapped."""
        return [chunk.module for chunk in self.chunks]

    def sharded_state(self, loading: bool, optimizer: bool = True) -> dict:
        """Megatron sharded state dict of model (one dict over all this rank's stages) and, if asked for, optimizer.

        Megatron fills a fresh optimizer with placeholder values before loading into it, so it is not asked when only the
        weights are wanted."""
        model = {}
        for number, stage in enumerate(self.stages()):
            model.update(stage.sharded_state_dict(prefix="" if len(self.chunks) == 1 else f"{number}/"))
        if not optimizer:
            return {"model": model}
        return {"model": model,
                "optimizer": self.optimizer.sharded_state_dict(model, is_loading=loading, metadata=dict(_OPTIMIZER_SHARDING))}

    def load_weights(self, weights: WeightsFolder, components: Collection[str]) -> None:
        """Fill components from a folder of weights, each rank its own parts; the optimizer restarts from them."""
        for component in (name for name in components if name != "cross_attention"):
            for stage in self.stages():
                fill(stage, component, weights.files_of([component]), weights.path, "cross_attention" in components)
        self.optimizer.reload_model_params()

    def load_state(self, state: dict) -> None:
        """Take loaded tensors back; without "optimizer" the optimizer restarts from the loaded weights."""
        for number, stage in enumerate(self.stages()):
            prefix = "" if len(self.chunks) == 1 else f"{number}/"
            stage.load_state_dict({k[len(prefix):]: v for k, v in state["model"].items() if k.startswith(prefix)})
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        else:
            self.optimizer.reload_model_params()

    # -- agreement --------------------------------------------------------------------------------------------------

    def gather_objects(self, value) -> list:
        """One Python object of every rank, in rank order."""
        out = [None] * self.groups.world
        dist.all_gather_object(out, value)
        return out

    def any_rank(self, flag: bool) -> bool:
        """True everywhere if true anywhere."""
        seen = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        return bool(seen)

    def barrier(self) -> None:
        dist.barrier()
