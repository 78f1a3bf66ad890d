"""Which kernels compute each part of a run: decided once, from the setting and from what is really there. See docs/kernels.md.

`look` finds out what a machine has, `decide` is a pure function of that and of the settings, and what it returns is handed to
model and engine, told by the doctor, and written in a line when a run starts. A choice that the machine cannot serve is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from nvlm_train.config.schema import Model
from nvlm_train.errors import ConfigError
from nvlm_train.kernel_trials import compiler_problem, product_problem
from nvlm_train.optional import installed, load, reason

TORCH, APEX, TE, COMPILED, PRODUCT = "torch", "apex", "te", "compiled", "product"
ENGINE = "Transformer Engine"
GET = {TE: "pip install --no-build-isolation 'transformer-engine[pytorch]' (needs the CUDA toolkit and cuDNN)",
       APEX: "build NVIDIA's from its repository, github.com/NVIDIA/apex (pip's apex is another package)"}
# Logits that cross-entropy works on at once. In fp32 they are 64 MiB: little beside what a step keeps, and enough to fill a kernel.
LOGITS_AT_ONCE = 2**24
# The lowest compute capability that computes in a recipe's format, and the first that does not (Transformer Engine 2.20).
FP8_CAPABILITY = {"current": ((8, 9), None), "delayed": ((8, 9), None), "mxfp8": ((10, 0), (12, 0))}


@dataclass(frozen=True)
class Found:
    """What a machine offers.

    device: cpu | cuda; capability: of the GPU. varlen: torch's variable-length flash attention is there. te, apex: why the
    package cannot be used, None if it can. apex_wgrad: the same of apex's kernel that adds weight gradients up in fp32; product: of
    torch's product that does; compiler: of torch's compiler.
    """

    device: str
    capability: tuple[int, int] | None = None
    varlen: bool = False
    te: str | None = "not looked for"
    apex: str | None = "not looked for"
    apex_wgrad: str | None = "not looked for"
    product: str | None = "not looked for"
    compiler: str | None = "not looked for"


@dataclass(frozen=True)
class KernelPlan:
    """What computes each part.

    norm: of the decoder's layers, torch | apex | te (inside the linear layer behind it)
    linear: of the decoder's self-attention and MLP, megatron | te | fp8 (Megatron's, products of some by torch in fp8)
    attention: of packed rows, segments (a call a sample) | mask | varlen (torch's flash attention) | te
    cross_attention: of NVLM-X and -H, segments | varlen
    rope: megatron | compiled | te; adam: torch | apex | te
    elementwise: SwiGLU, the frozen encoder's biases, activations and additions, the passes over the logits: torch (a kernel an
        operation) | compiled (`model.elementwise`)
    wgrad: gradients of the decoder's weights come into the fp32 buffer by DDP (torch), or in the matrix product itself, which is
        torch's (product), apex's or Transformer Engine's (apex, te)
    fp8: recipe of the decoder's linears, none | current | delayed | mxfp8
    """

    device: str
    norm: str = TORCH
    linear: str = "megatron"
    attention: str = "segments"
    cross_attention: str = "segments"
    rope: str = "megatron"
    adam: str = TORCH
    elementwise: str = TORCH
    wgrad: str = TORCH
    fp8: str = "none"
    notes: tuple[tuple[str, str], ...] = ()     # part -> why not the faster
    lacking: tuple[str, ...] = ()               # what would have been taken and does not work here

    def parts(self) -> Iterator[tuple[str, str]]:
        """(part, what computes it, and why not the faster)."""
        notes = dict(self.notes)
        fused = " fused" if self.device == "cuda" else ""
        told = {
            "norm": {TORCH: "torch's RMSNorm", APEX: "apex's RMSNorm", TE: f"{ENGINE}'s, inside the linear layer"}[self.norm],
            "linear layers": {"megatron": "Megatron-Core's", TE: f"{ENGINE}'s", "fp8": "Megatron-Core's, products by torch"}[self.linear] + (
                f", fp8 ({self.fp8} scaling)" if self.fp8 != "none" else ""),
            "attention": _ATTENTION[self.attention],
            "cross-attention": _CROSS[self.cross_attention],
            "rotary positions": {"megatron": "Megatron-Core's, unfused", COMPILED: "compiled",
                                 TE: f"{ENGINE}'s, fused"}[self.rope],
            "SwiGLU": self.elementwise,
            "weight gradients": {TORCH: "added up in fp32 by data parallelism", PRODUCT: "torch, added up in fp32 in the product",
                                 APEX: "apex, added up in fp32 in the product",
                                 TE: f"{ENGINE}, added up in fp32 in the product"}[self.wgrad],
            "cross-entropy": f"{self.elementwise}, supervised positions only, in chunks",
            "vision encoder": {TORCH: "torch and Megatron-Core's linear layers",
                               COMPILED: "torch's products, the rest compiled while it is frozen"}[self.elementwise],
            "optimizer": "Megatron's distributed optimizer with " + {
                TORCH: f"torch's{fused} AdamW", APEX: "apex's FusedAdam", TE: f"{ENGINE}'s FusedAdam"}[self.adam],
        }
        for part, text in told.items():
            yield part, text + (f"; {notes[part]}" if part in notes else "")

    def line(self) -> str:
        """All of it, in one line."""
        return (f"norm {self.norm}, linear {self.linear}, attention {self.attention}, cross-attention "
                f"{self.cross_attention}, rope {self.rope}, element-wise {self.elementwise}, Adam {self.adam}, weight gradients "
                f"{self.wgrad}, fp8 {self.fp8}")


_ATTENTION = {
    "segments": "SDPA, one call per sample of a row",
    "mask": "SDPA under a block mask",
    "varlen": "torch's variable-length flash attention",
    TE: f"{ENGINE}'s fused attention, packed",
}
_CROSS = {"segments": "SDPA, one call per reading span", "varlen": _ATTENTION["varlen"]}


def look(device: str, *wanted: str) -> Found:
    """What there is for `device` (cpu | cuda). Only what is `wanted` of te, apex (imported) and compiled, product (tried) is looked
    for: that takes seconds."""
    torch = load("torch")
    te = apex = apex_wgrad = "not looked for"
    if TE in wanted:
        te = _missing("transformer_engine.pytorch", "transformer-engine", "Linear", "LayerNormLinear", "DotProductAttention")
        te = te or _missing("transformer_engine.pytorch.optimizers", "transformer-engine", "FusedAdam")
    if APEX in wanted:
        apex = (_missing("apex.optimizers", "apex", "FusedAdam") or _missing("apex.normalization", "apex", "FusedRMSNorm")
                or _missing("amp_C", "apex") or _missing("fused_layer_norm_cuda", "apex"))
        apex_wgrad = apex or _missing("fused_weight_gradient_mlp_cuda", "apex")
    return Found(device, torch.cuda.get_device_capability() if device == "cuda" else None,
                 not isinstance(load("torch.nn.attention.varlen"), Exception), te, apex, apex_wgrad,
                 product_problem(device) if PRODUCT in wanted else "not looked for",
                 compiler_problem(device) if COMPILED in wanted else "not looked for")


def _missing(module: str, distribution: str, *names: str) -> str | None:
    """Why `module` with `names` cannot be used; None if it can."""
    found = load(module)
    if isinstance(found, Exception):
        version = installed(distribution)
        return f"{version} does not load {module} ({reason(found)})" if version else "not installed"
    lacking = [name for name in names if not hasattr(found, name)]
    return f"{installed(distribution) or 'what is installed'} has no {module}.{lacking[0]}" if lacking else None


def decide(model: Model, dtype: str, found: Found) -> KernelPlan:
    """The plan for `model.kernels` and `model.fp8` at compute dtype bf16 | fp32.

    auto is torch: on one H100 Transformer Engine's layers were no faster (docs/kernels.md), so they are for who asks. Raises
    ConfigError for what this machine cannot do, saying what is missing, how to get it, and the setting that works.
    """
    chosen = TORCH if model.kernels == "auto" else model.kernels
    _refuse_missing(chosen, dtype, found, "model.kernels=torch" + (" model.fp8=none" if model.fp8 != "none" else ""))
    _refuse_fp8(model.fp8, chosen, dtype, found)
    compiled = _compiled(model.compile, found)
    flash = found.device == "cuda" and found.varlen and dtype == "bf16"
    core = "segments" if found.device == "cpu" else "varlen" if flash else "mask"
    plan = {"device": found.device, "attention": core, "cross_attention": "varlen" if flash else "segments", "fp8": model.fp8}
    if compiled:
        plan |= {"elementwise": COMPILED, "rope": COMPILED}
    if chosen == TORCH and found.device == "cuda" and not found.product:
        plan |= {"wgrad": PRODUCT}
    if chosen == TE:
        plan |= {"norm": TE, "linear": TE, "attention": TE, "rope": TE, "adam": TE, "wgrad": TE}
    elif model.fp8 != "none":
        plan |= {"linear": "fp8"}
    if chosen == APEX:
        plan |= {"norm": APEX, "adam": APEX, "wgrad": TORCH if found.apex_wgrad else APEX}
    return KernelPlan(**plan, notes=tuple(_notes(chosen, core, found, model)), lacking=tuple(_lacking(chosen, found, model)))


def plan_for(model: Model, device: str, dtype: str) -> KernelPlan:
    """`decide` on this machine."""
    wanted = {model.kernels} & {TE, APEX}
    if device == "cuda":
        wanted |= {PRODUCT}
    if _wants_compiler(model.compile, device):
        wanted |= {COMPILED}
    return decide(model, dtype, look(device, *wanted))


def _wants_compiler(setting: str, device: str) -> bool:
    """`model.compile`: auto compiles for GPUs."""
    return setting == "on" or (setting == "auto" and device == "cuda")


def _compiled(setting: str, found: Found) -> bool:
    """Whether element-wise parts are compiled. Where `auto` cannot, they are not, and a note says why."""
    if setting == "on" and found.compiler:
        raise ConfigError(f"model.compile=on, but torch's compiler does not work here, {found.compiler}: it needs a C++ compiler, and on a "
                          "GPU Triton; or use model.compile=auto, which does without")
    return _wants_compiler(setting, found.device) and not found.compiler


def _refuse_missing(chosen: str, dtype: str, found: Found, works: str) -> None:
    """works: the settings that do."""
    if chosen == TORCH:
        return
    if found.device == "cpu":
        raise ConfigError(f"model.kernels={chosen} needs an NVIDIA GPU and this run is on the CPU: use {works}")
    if problem := {TE: found.te, APEX: found.apex}[chosen]:
        name = {TE: ENGINE, APEX: "apex"}[chosen]
        raise ConfigError(f"model.kernels={chosen}: {name} is not usable here, {problem}; {GET[chosen]}, "
                          f"or use {works}")
    if chosen == TE and dtype == "fp32":
        raise ConfigError(f"model.kernels=te with model.dtype=fp32: {ENGINE}'s packed attention takes half precision only; "
                          f"use model.dtype=bf16, or {works}")


def _refuse_fp8(recipe: str, chosen: str, dtype: str, found: Found) -> None:
    if recipe == "none":
        return
    if found.device == "cpu":
        raise ConfigError(f"model.fp8={recipe}: only GPUs compute in fp8 and this run is on the CPU; use model.fp8=none")
    takes = (TORCH, TE) if recipe == "current" else (TE,)
    if chosen not in takes or dtype == "fp32":
        raise ConfigError(f"model.fp8={recipe} needs model.kernels={' or '.join(takes)} and model.dtype=bf16, here they come to {chosen} "
                          f"and {dtype}: set them, or use model.fp8=none")
    (major, minor), above = FP8_CAPABILITY[recipe]
    if found.capability < (major, minor) or (above and found.capability >= above):
        limit = f"{major}.{minor} or higher" + (f", below {above[0]}.{above[1]}" if above else "")
        raise ConfigError(f"model.fp8={recipe} needs compute capability {limit}, this GPU has {found.capability[0]}."
                          f"{found.capability[1]}: use model.fp8=none" + (" or current" if recipe == "mxfp8" else ""))


def _lacking(chosen: str, found: Found, model: Model) -> Iterator[str]:
    """What a run says when it starts: it goes on without."""
    if _wants_compiler(model.compile, found.device) and found.compiler:
        yield f"element-wise parts are not compiled, torch's compiler does not work here: {found.compiler}"
    if chosen == TORCH and found.device == "cuda" and found.product:
        yield f"weight gradients are added up outside the product, this torch cannot inside: {found.product}"
    if chosen == TORCH and model.fp8 != "none" and not _compiled(model.compile, found):
        yield "fp8's casts are not compiled: they may cost more than fp8 gains"


def _notes(chosen: str, core: str, found: Found, model: Model) -> Iterator[tuple[str, str]]:
    """Why a part does not take a faster way that exists."""
    if found.device == "cpu":
        return
    if core == "mask" and chosen != TE:
        yield "attention", ("flash kernels take half precision only (model.dtype=bf16)" if found.varlen
                            else "torch >= 2.10 has a flash kernel for packed rows")
    if chosen == APEX and found.apex_wgrad:
        yield "weight gradients", f"apex's own kernel is missing ({found.apex_wgrad})"
    if chosen == TORCH:
        yield "norm", f"model.kernels=te takes {ENGINE}'s"
        able = model.fp8 == "none" and found.capability >= FP8_CAPABILITY["current"][0]
        yield "linear layers", ("model.fp8=current computes large ones in fp8, " if able else "") + f"model.kernels=te takes {ENGINE}'s"
        if found.product:
            yield "weight gradients", f"this torch cannot add a product up in fp32 ({found.product})"
    if not _compiled(model.compile, found):
        why = "model.compile=off" if model.compile == "off" else f"torch's compiler does not work here ({found.compiler})"
        for part in ("SwiGLU", "cross-entropy", *(("rotary positions",) if chosen != TE else ())):
            yield part, f"not compiled: {why}"
    yield "vision encoder", "25 heads padded to 32, LayerScale and norms over all heads are in no fused layer"
