"""The DeepSpeed engine: ZeRO-1, 2 or 3 over data-parallel ranks, each of which computes the whole model. See docs/deepspeed.md.

Model, loss, data and checkpoints are the Megatron engine's. ZeRO-3 gathers a module's weights as it is about to run and divides
gradients as they come, so every rank must run the same modules for every row: text without pictures does (`model/nvlm.py`,
`model/cross_attention.py`). A frozen vision encoder is the exception that it need not: it stays whole on every rank, since gathering it
for every row would cost more than keeping it, and rows with cached features do not run it at all.
"""

import io
import math
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch import Tensor
from torch.nn import Module, Parameter

from nvlm_train.config.schema import Run
from nvlm_train.contracts import PackedBatch, StepBatch, StepReport
from nvlm_train.engine.agree import on_every_rank
from nvlm_train.engine.frozen import encoder_fingerprint, see
from nvlm_train.engine.job import Job
from nvlm_train.engine.kernel_choice import choose_kernels
from nvlm_train.engine.optimizer import set_rates
from nvlm_train.engine.weights_folder import WeightsFolder
from nvlm_train.engine.zero_setup import adamw, load_deepspeed, zero_config
from nvlm_train.engine.zero_state import Held, ZeroState
from nvlm_train.engine.zero_tensors import ZeroTensors
from nvlm_train.errors import CheckpointError
from nvlm_train.model.cache import CacheRow
from nvlm_train.model.freeze import refuse_unmatched, set_trainable
from nvlm_train.model.nvlm import Nvlm, to_device
from nvlm_train.model.weights import fill
from nvlm_train.parallel import groups as parallel


class DeepSpeedEngine(Job):
    """See `engine.interface.Engine`. Build it on every rank of the job with the same run.

    Raises ConfigError: DeepSpeed does not load, a pattern of `train.trainable` or `train.lr_multipliers` matches nothing.
    """

    def __init__(self, run: Run):
        super().__init__(run)
        self._deepspeed = load_deepspeed(self.device)
        self._deepspeed.init_distributed(dist_init_required=False, verbose=False)
        self._build()

    # -- building -----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        run, settings = self.run, zero_config(self.run, self.dtype, self.device)
        # torch's: the rules allow no others with this engine, whose gradients are in buffers of its own
        kernels = choose_kernels(self, run.model, self.device, sums_up=False)
        with self._sharing_out(settings):
            model = Nvlm(run.model, run.layout, self.dtype, kernels, True, True, None, self._memory_tokens)
        model.use_every_weight()
        model.vision.set_colours(run.model.vision)  # while sharing out, ZeRO makes every new tensor one of the weights' dtype
        names = [name for name, _ in model.named_parameters()]
        for key in ("trainable", "lr_multipliers"):
            refuse_unmatched(getattr(run.train, key), names, f"train.{key}")
        set_trainable(model.named_parameters(), run.train.trainable)
        model.route_gradients({name for name, param in model.named_parameters() if param.requires_grad})
        apart = run.engine.zero == 3 and not any(param.requires_grad for param in model.vision.parameters())
        if apart:
            _keep_whole(model.vision, self.device)
        self._state = ZeroState(model)
        optimizer = adamw(model.named_parameters(), run.train, fused=self.device.type == "cuda" or run.engine.offload != "none")
        if apart:
            _hide(model, "vision")
        with redirect_stdout(io.StringIO()):    # it prints memory while it sets up ZeRO-1 in bf16, asked or not
            self._wrapped, *_ = self._deepspeed.initialize(model=model, optimizer=optimizer, config=settings,
                                                           dist_init_required=False)
        if run.engine.zero == 3 and run.model.language.tie_embeddings:
            # The output layer is handed the embedding's weight: ZeRO must gather it there too.
            self._deepspeed.zero.register_external_parameter(model.language.output_layer, model.language.embedding.weight)
        self._model, self._tensors = model, ZeroTensors(self._deepspeed, self._wrapped)
        self._initialise()

    def _sharing_out(self, settings: dict) -> AbstractContextManager:
        """Under ZeRO-3 every module's weights are divided as soon as it is made, so no rank ever holds the whole model.

        Their dtype is the settings'. Said here, DeepSpeed 0.19 would replace it by bf16 on a CPU that has no fp16 products.
        """
        if self.run.engine.zero < 3:
            return nullcontext()
        return self._deepspeed.zero.Init(config_dict_or_path=settings)

    def _initialise(self) -> None:
        """The same initial values as any engine and layout. Every tensor is drawn, or read, by the one rank that owns it."""
        values = self._state.empty()
        on_every_rank(self, "reading the weights to start from", lambda: self._fill_in(Held(values)), CheckpointError)
        self._take(values)

    def _take(self, values: dict) -> None:
        """Weights that ranks own, to all. The optimizer's master weights follow."""
        own = {name: sharded.data for name, sharded in values.items() if not isinstance(sharded, ShardedObject)}
        self._state.load(self._tensors, own, None)

    def close(self) -> None:
        """Give up the groups and memory; the job stays joined, another stage may build its engine."""
        self._wrapped.destroy()
        self._deepspeed.runtime.zero.parameter_offload.FWD_MODULE_STACK.clear()   # or it would keep the model alive
        del self._wrapped, self._model, self._tensors, self._state
        parallel.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # -- one step -----------------------------------------------------------------------------------------------------

    def train_step(self, batch: StepBatch, lr: float) -> StepReport:
        """Forward and backward row by row, then one update. A step without any supervised token is refused."""
        rows, reports = list(batch.rows), []
        weight = self._global_weight(rows)      # all ranks come from here together
        self._watch.start()
        self._wrapped.train()
        for row in rows:
            self._wrapped.set_gradient_accumulation_boundary(row is rows[-1])
            total, sums = self._sums(row, self._forward(row, "loss"))
            reports.append(sums)
            self._watch.stop()      # ZeRO-1 exchanges gradients in the last row's backward, ZeRO-2 and 3 more often
            self._wrapped.backward(self._share(total, weight), scale_wrt_gas=False)
        set_rates(self._wrapped.basic_optimizer, lr, self.run.train.weight_decay)
        self._wrapped.step()
        seen = self._seen(rows, weight, reports)
        norm = float(self._wrapped.get_global_grad_norm()) if seen.weight else 0.0
        return self._report(seen, norm, self._wrapped.was_step_applied())

    def _share(self, total: Tensor, weight: Tensor) -> Tensor:
        """A row's part of the step's loss, times the number of ranks, by which DeepSpeed divides.

        DeepSpeed leaves out a step whose gradient is not finite, whole and on all ranks. So that it also leaves out one whose loss
        is not, or that has no weight, such a row's gradient is made not finite.
        """
        share = (self.data_size / weight).float()      # infinite without a weight
        return total * torch.where(total.detach().isfinite() & share.isfinite(), share, math.nan)

    def _forward(self, row: PackedBatch, want: str, at: Tensor | None = None, held: CacheRow | None = None) -> Tensor:
        return self._wrapped(to_device(row, self.device, self._tile_tokens, at, held), want)

    # -- without gradients --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, rows: Iterable[PackedBatch]) -> dict[str, tuple[float, float]]:
        """Source -> (weighted loss sum, weight sum) over all ranks' rows."""
        self._wrapped.eval()
        return self._by_name(self._reduce_sums([self._sums(row, self._forward(row, "loss"))[1] for row in rows]).tolist())

    @torch.no_grad()
    def logits(self, row: PackedBatch, at: Tensor, held: CacheRow | None = None) -> Tensor:
        """float32 [K, V] at row positions `at`. Under ZeRO-3 all ranks call it equally often, each with its own row."""
        self._wrapped.eval()
        return self._forward(row, "logits", at, held).float()[:, :self.run.model.language.vocab].contiguous()

    def see(self, row: PackedBatch) -> Tensor | None:
        """[n, L, C] features of a row's tiles, in host memory. Under ZeRO-3 with a trained encoder all ranks call it equally often."""
        self._wrapped.eval()
        return see([self._model], row, self.device)

    def encoder_fingerprint(self) -> str:
        """Names the encoder's weights, whatever engine holds them (see `frozen`)."""
        return encoder_fingerprint([Held(self._state.weights(self._tensors, "vision"))], self.device)

    # -- state --------------------------------------------------------------------------------------------------------

    def stages(self) -> list[Nvlm]:
        """The whole model: the one stage of every rank."""
        return [self._model]

    def sharded_state(self, loading: bool, optimizer: bool = True) -> dict:
        """Sharded state dict as the Megatron engine's, each tensor whole and on one rank (see `zero_state`)."""
        model = self._state.weights(self._tensors)
        return {"model": model} | ({"optimizer": self._state.optimizer(self._tensors)} if optimizer else {})

    def load_state(self, state: dict) -> None:
        """Take loaded tensors back; without "optimizer" the optimizer restarts from the loaded weights."""
        self._state.load(self._tensors, state["model"], state.get("optimizer"))

    def load_weights(self, weights: WeightsFolder, components: Collection[str]) -> None:
        """Fill components from a folder of weights, each rank what it owns; the optimizer restarts from them."""
        values = self._state.weights(self._tensors)

        def fill_in() -> None:
            for component in (name for name in components if name != "cross_attention"):
                fill(Held(values), component, weights.files_of([component]), weights.path, "cross_attention" in components,
                     weights.tied)

        on_every_rank(self, f"reading {weights.path}", fill_in, CheckpointError)
        self._take(values)


def _keep_whole(module: Module, device: torch.device) -> None:
    """Parameters that ZeRO-3 has divided while they were made, as plain frozen ones. Their values are still to come."""
    for part in module.modules():
        for name, param in part._parameters.items():
            if param is not None:
                whole = Parameter(torch.empty(param.ds_shape, dtype=param.dtype, device=device), requires_grad=False)
                vars(whole).update({key: value for key, value in vars(param).items() if not key.startswith("ds_")})
                part._parameters[name] = whole


def _hide(model: Module, name: str) -> None:
    """Take a module out of the tree that ZeRO goes through, and leave it where forward finds it."""
    module: Any = model._modules.pop(name)
    object.__setattr__(model, name, module)
