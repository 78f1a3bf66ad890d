"""The Megatron engine: the model laid out over tensor, context, pipeline and data parallel ranks, and one optimizer step on it."""

import math
from collections.abc import Collection, Iterable

import torch
import torch.distributed as dist
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func

from nvlm_train.config.schema import Run
from nvlm_train.config.split import memory_budget
from nvlm_train.contracts import PackedBatch, StepBatch, StepReport
from nvlm_train.engine.frozen import encoder_fingerprint, see
from nvlm_train.engine.gradients import squared_norm
from nvlm_train.engine.job import Job
from nvlm_train.engine.kernel_choice import choose_kernels
from nvlm_train.engine.optimizer import build_optimizer, complete_groups, data_parallel, set_rates, update
from nvlm_train.engine.overlap import hand_out, settle
from nvlm_train.engine.weights_folder import WeightsFolder
from nvlm_train.kernels import KernelPlan
from nvlm_train.model.cache import CacheRow
from nvlm_train.model.context import Context
from nvlm_train.model.freeze import plain_name, refuse_unmatched, set_trainable
from nvlm_train.model.nvlm import Nvlm, to_device
from nvlm_train.model.sharing import TileShare
from nvlm_train.model.weights import fill
from nvlm_train.parallel import groups as parallel

_OPTIMIZER_SHARDING = {"distrib_optim_sharding_type": "fully_reshardable", "distrib_optim_fully_reshardable_mem_efficient": False}


def whole_model_names(stage: Nvlm):
    """(name with whole-model layer numbers, parameter) of a stage."""
    lead, layers = "language.decoder.layers.", stage.language.decoder.layers
    first_layer = layers[0].layer_number - 1 if len(layers) else 0
    for name, param in stage.named_parameters():
        if name.startswith(lead):
            local, rest = name[len(lead):].split(".", 1)
            name = f"{lead}{int(local) + first_layer}.{rest}"
        yield plain_name(name), param


def bare_stages(run: Run, dtype: torch.dtype, kernels: KernelPlan) -> list[Nvlm]:
    """The (virtual) pipeline stages of this rank, their values still to come."""
    memory = memory_budget(run.model, run.data.pack_tiles, run.layout.tensor)
    share = TileShare(*parallel.alone_and_tensor()) if run.layout.share_tiles else None
    return [Nvlm(run.model, run.layout, dtype, kernels, *parallel.stage_flags(run.layout, vp_stage), vp_stage, memory, share)
            for vp_stage in (range(run.layout.virtual) if run.layout.virtual > 1 else [None])]


class MegatronEngine(Job):
    """See `engine.interface.Engine`. Build it on every rank of the job with the same run."""

    def __init__(self, run: Run):
        super().__init__(run)
        self._schedule = get_forward_backward_func()
        groups = self.groups
        self._context = Context(groups.context_group, groups.context_rank, groups.context_size) if groups.context_size > 1 else None
        self._build()

    # -- building ---------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        run = self.run
        self.kernels = choose_kernels(self, run.model, self.device)
        stages = bare_stages(run, self.dtype, self.kernels)
        for stage in stages:
            self._fill_in(stage)
        names = self._set_trainable(stages)
        self.config = stages[0].config
        self.config.finalize_model_grads_func = self._finish_gradients
        self.overlaps = run.layout.overlap and self.data_size > 1
        self.chunks = data_parallel(stages, self.overlaps)
        for key in ("trainable", "lr_multipliers"):
            refuse_unmatched(getattr(run.train, key), names, f"train.{key}")
        self.optimizer = build_optimizer(self.chunks, run.train, bf16=self.dtype == torch.bfloat16, adam=self.kernels.adam)

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
        settle(self.chunks)
        self.chunks, self.optimizer = [], None
        parallel.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # -- one step ---------------------------------------------------------------------------------------------------

    def _run_schedule(self, rows, loss_func, want: str = "loss", at=None, held: CacheRow | None = None, forward_only=False) -> list:
        """Megatron's schedule over rows, all of one length; what the last stage's loss_func reported, in row order.

        For losses a context-parallel group shares out each row; what is asked for logits, all its ranks compute whole.
        """
        split = self._context if want == "loss" else None

        def forward_step(iterator, stage):
            row = next(iterator)
            share = split and split.share_of(row)
            row = share.take(row) if share else row
            moved = to_device(row, self.device, self._tile_tokens, at, held, share)
            return stage(moved, want), lambda output, **_: loss_func(row, output)

        rows = list(rows)
        iterators = [iter(rows) for _ in self.chunks]
        tokens = len(rows[0].tokens_T) if rows else self.run.data.pack_tokens
        memory = 0 if held is not None and held.decoding else self._memory_tokens
        ranks = self.groups.context_size        # Megatron divides lengths by it
        length = tokens // (ranks if split else 1) + memory
        return self._schedule(
            forward_step_func=forward_step, data_iterator=iterators if len(iterators) > 1 else iterators[0], model=self.chunks,
            num_microbatches=len(rows), seq_length=length * ranks, micro_batch_size=1, forward_only=forward_only,
            collect_non_loss_data=want == "logits")

    def _finish_gradients(self, models, tokens=None, **extra) -> None:
        """Where a rank first waits for the other replicas. tokens: Megatron's own count, unused."""
        self._watch.stop()
        finalize_model_grads(models, None, **extra)

    def train_step(self, batch: StepBatch, lr: float) -> StepReport:
        """Forward and backward over all rows, then one update. A step without any supervised token is refused."""
        rows = list(batch.rows)
        weight = self._global_weight(rows)      # all ranks come from here together
        self._watch.start()
        for chunk in self.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        one = torch.ones((), dtype=torch.int, device=self.device)  # Megatron's own token count, unused
        divisor = torch.where(weight > 0, weight, 1).float()

        def loss_func(row, losses):
            total, sums = self._sums(row, losses)
            return total / divisor, one, sums

        reports = self._run_schedule(rows, loss_func)
        self.optimizer.prepare_grads()
        seen = self._seen(rows, weight, reports, squared_norm(self.optimizer, self.device))     # here the host waits, once a step
        set_rates(self.optimizer, lr, self.run.train.weight_decay)
        settle(self.chunks)
        applied = update(self.optimizer, self.run.train.clip_grad, seen.grad_norm, math.isfinite(seen.loss) and seen.weight > 0)
        self._weights_changed(frozen=False)
        if self.overlaps:
            hand_out(self.chunks)
        return self._report(seen, seen.grad_norm, applied)

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
        return self._by_name(self._reduce_sums(reports).tolist())

    @torch.no_grad()
    def logits(self, row: PackedBatch, at: torch.Tensor, held: CacheRow | None = None) -> torch.Tensor:
        """float32 [K, V] at row positions `at`, on every rank of the replica."""
        self._eval()
        copies = self.groups.pipeline_size if len(self.chunks) > 1 else 1  # the interleaved schedule wants full rounds
        reports = self._run_schedule([row] * copies, lambda _, output: output.float(), want="logits", at=at, held=held,
                                     forward_only=True)
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
        settle(self.chunks)
        for chunk in self.chunks:
            chunk.eval()

    # -- state ------------------------------------------------------------------------------------------------------

    def stages(self) -> list[Nvlm]:
        """This rank's (virtual) pipeline stages, unwrapped, with all their weights."""
        settle(self.chunks)
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
                fill(stage, component, weights.files_of([component]), weights.path, "cross_attention" in components,
                     weights.tied)
        self.optimizer.reload_model_params()
        self._weights_changed(frozen=True)

    def load_state(self, state: dict) -> None:
        """Take loaded tensors back; without "optimizer" the optimizer restarts from the loaded weights."""
        for number, stage in enumerate(self.stages()):
            prefix = "" if len(self.chunks) == 1 else f"{number}/"
            stage.load_state_dict({k[len(prefix):]: v for k, v in state["model"].items() if k.startswith(prefix)})
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
            complete_groups(self.optimizer)
        else:
            self.optimizer.reload_model_params()
        self._weights_changed(frozen=True)

    def _weights_changed(self, frozen: bool) -> None:
        for stage in self.stages():
            stage.language.weights_changed(frozen)
