"""AdamW inside Megatron's distributed optimizer: fp32 master weights, state sharded over data parallel, reshardable.

Left to itself, Megatron takes Transformer Engine's fused Adam or apex's, whichever imports first, even where no GPU is; here the
run's kernels decide. Without either it falls back to torch's AdamW, which keeps its step count per tensor: the distributed
optimizer's reshardable checkpoint cannot load that. The class below keeps it per group, as the fused ones do, and calls torch's
own (on a GPU fused) kernel. All three decay weights by lr * weight_decay of their old value and add eps to the corrected root.
"""

import math
from importlib import import_module

import megatron.core.optimizer as megatron_optimizer
import megatron.core.optimizer.distrib_optimizer as distributed
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, ParamKey, get_megatron_optimizer
from megatron.core.optimizer.optimizer_config import ParamWithNamePredicate
from megatron.core.transformer.module import MegatronModule

from nvlm_train.config.schema import Train
from nvlm_train.engine.bucket_state import keep_padding
from nvlm_train.engine.gradients import clip
from nvlm_train.engine.overlap import overlapping, prepare
from nvlm_train.engine.rounding import noises, rounded
from nvlm_train.model.freeze import matches, plain_name

_MOMENTS = ("exp_avg", "exp_avg_sq")
_FUSED_ADAM = {"te": "transformer_engine.pytorch.optimizers", "apex": "apex.optimizers"}


class AdamW(torch.optim.Optimizer):
    """Decoupled weight decay (Loshchilov & Hutter 2019), step count in the parameter group. moments: dtype in which they are kept."""

    moments = torch.float32

    def __init__(self, params, lr: float, weight_decay: float, betas: tuple[float, float], eps: float, **_):
        # The fused ones keep bias_correction in their groups, and fail on a checkpoint whose groups lack it.
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps, "bias_correction": True})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                for name in _MOMENTS:
                    kept = self.state[p].get(name)      # what Megatron puts there to load into is fp32
                    self.state[p][name] = torch.zeros_like(p, dtype=self.moments) if kept is None else kept.to(self.moments)
            if params:
                self._update(group, params)

    def _update(self, group: dict, params: list) -> None:
        _adamw(group, params, *([self.state[p][name] for p in params] for name in _MOMENTS))


class RoundedAdamW(AdamW):
    """The same with moments kept in bf16: computed with in fp32, one parameter at a time, and rounded at random (see `rounding`)."""

    moments = torch.bfloat16

    def _update(self, group: dict, params: list) -> None:
        for p in params:
            wide = [self.state[p][name].float() for name in _MOMENTS]
            _adamw(group, [p], *([moment] for moment in wide))
            for name, moment, noise in zip(_MOMENTS, wide, noises(p.grad, group["step"]), strict=True):
                self.state[p][name].copy_(rounded(moment, noise))


def _adamw(group: dict, params: list, first: list, second: list) -> None:
    """torch's kernel, on a GPU the fused one. first, second: fp32 moments, changed in place."""
    # Filled on the device: a number that is sent there makes the host wait for all that is queued.
    before = torch.full((len(params),), float(group["step"] - 1), dtype=torch.float32, device=params[0].device)
    torch.optim._functional.adamw(
        params, [p.grad for p in params], first, second, [], list(before.unbind()),
        foreach=False, fused=params[0].is_cuda, capturable=False, amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1],
        lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False)


def _take_adam(which: str, state: str) -> None:
    """Let Megatron use the Adam that the plan names (`kernels.KernelPlan`), instead of the first that its import found. state: of
    `train.optimizer_state`, which torch's alone may have in bf16.

    Its distributed optimizer treats Transformer Engine's and apex's alike, and ours like them: step count per group, moments in
    fp32 wherever it describes them. So a checkpoint of one is a checkpoint of the others.
    """
    own = RoundedAdamW if state == "bf16" else AdamW
    adam = own if which == "torch" else import_module(_FUSED_ADAM[which]).FusedAdam
    megatron_optimizer.Adam = distributed.Adam = adam
    megatron_optimizer.USING_PYTORCH_OPTIMIZER = False
    distributed.HAVE_APEX_OR_TE = True
    distributed.USING_TE_OPTIMIZER, distributed.USING_APEX_OPTIMIZER = which == "te", which != "te"


def _overrides(train: Train) -> dict:
    """Megatron's parameter-group overrides: no weight decay on vectors, one learning-rate factor a pattern.

    Names reach the predicates as `module.<whole-model name>` (layer numbers are the stage's own).
    """
    vectors = ParamWithNamePredicate(name="vectors", fn=lambda param, name: param.ndim == 1)
    overrides = {ParamKey(with_name_predicate=vectors): {"wd_mult": 0.0}}
    for pattern, factor in sorted(train.lr_multipliers.items()):
        chosen = ParamWithNamePredicate(
            name=pattern, fn=lambda param, name, p=pattern: matches(p, plain_name(name.removeprefix("module."))))
        overrides[ParamKey(with_name_predicate=chosen)] = {"lr_mult": float(factor)}
    return overrides


def data_parallel(stages: list[MegatronModule], overlap: bool) -> list[DistributedDataParallel]:
    """The stages over Megatron's buffers: their trained parameters, and fp32 gradients that data-parallel ranks reduce and share out,
    with `overlap` beside the computing (see `overlap`): then the first stage's in buckets, each other's in one."""
    if not overlap:
        config = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
        return [DistributedDataParallel(stage.config, config, stage) for stage in stages]
    chunks = [DistributedDataParallel(stage.config, overlapping(), stage, disable_bucketing=number > 0)
              for number, stage in enumerate(stages)]
    prepare(chunks)
    return chunks


def build_optimizer(chunks: list, train: Train, bf16: bool, adam: str):
    """Megatron's distributed optimizer over the chunks' trainable parameters. adam: torch | te | apex."""
    _take_adam(adam, train.optimizer_state)
    config = OptimizerConfig(
        optimizer="adam", lr=train.lr, min_lr=train.min_lr, weight_decay=train.weight_decay, adam_beta1=train.beta1,
        adam_beta2=train.beta2, adam_eps=train.eps, clip_grad=train.clip_grad, bf16=bf16, use_distributed_optimizer=True)
    optimizer = get_megatron_optimizer(config, chunks, config_overrides=_overrides(train))
    keep_padding(optimizer)
    return optimizer


def set_rates(optimizer, lr: float, weight_decay: float) -> None:
    """This step's learning rate and decay, times each group's own factors."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)
        group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)


def complete_groups(optimizer) -> None:
    """After a load: what checkpoints before the fused Adams' time lack in their groups."""
    for group in optimizer.param_groups:
        group.setdefault("bias_correction", True)


def update(optimizer, most: float, norm: float, loss_is_finite: bool) -> bool:
    """One step with prepared gradients, clipped to the norm `most` (0: not clipped). norm: theirs. Returns whether it was applied.

    Loss and norm are of all ranks before anyone steps, so all agree; a non-finite step is left out whole, never
    multiplied by zero (0 * NaN is NaN).
    """
    if not (loss_is_finite and math.isfinite(norm)):
        return False
    if most > 0:
        clip(optimizer, norm, most)
    optimizer.step_with_ready_grads()
    return True
