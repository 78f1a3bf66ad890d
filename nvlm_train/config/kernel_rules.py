"""Rules of fp8: what it needs besides itself, and sizes that its matrix products divide into (see `rules`).

What only the machine knows (is Transformer Engine there, can the GPU do it) `nvlm_train.kernels` says when the engine is built.
"""

from collections.abc import Iterator

from nvlm_train.config.fp8_layers import FC1, FC2, PAYS, PROJ, QKV, fp8_linears, linears, reach
from nvlm_train.config.schema import Run

# Every side of an fp8 matrix product, in the forward and both backward ones, so tokens too. 16: the tensor cores' (Megatron-Core
# aligns to the same); 32: one scale of mxfp8 stands for so many numbers.
FP8_MULTIPLE = {"current": 16, "delayed": 16, "mxfp8": 32}


def fp8_company(run: Run) -> Iterator[str]:
    """fp8 is of bf16 models, on GPUs, by torch with scales of the moment or by Transformer Engine."""
    model = run.model
    if model.fp8 not in FP8_MULTIPLE:
        return
    if model.kernels == "apex":
        yield (f"model.fp8={model.fp8} with model.kernels=apex: apex has no fp8; use model.kernels=torch or te, or "
               "model.fp8=none")
    elif model.kernels != "te" and model.fp8 != "current":
        yield (f"model.fp8={model.fp8} needs model.kernels=te, it is {model.kernels}: set that, or use model.fp8=current, which torch "
               "computes too")
    if run.engine.name == "deepspeed":
        yield (f"model.fp8={model.fp8} with engine=deepspeed: ZeRO moves weights about while their fp8 copies are in use; use "
               "engine=megatron, or model.fp8=none")
    if model.dtype == "fp32":
        yield f"model.fp8={model.fp8} with model.dtype=fp32: fp8 is rounded from bf16; use model.dtype=bf16, or model.fp8=none"
    if run.run.device == "cpu":
        yield f"model.fp8={model.fp8} with run.device=cpu: only GPUs compute in fp8; use model.fp8=none"


def fp8_choice(run: Run) -> Iterator[str]:
    """Which linear layers: Transformer Engine's recipes are of all, and torch's choice must not come out empty."""
    model, tensor = run.model, run.layout.tensor
    if model.fp8 not in FP8_MULTIPLE or model.kernels == "apex":
        return
    if model.kernels == "te":
        if model.fp8_layers not in ("auto", "all"):
            yield (f"model.fp8_layers={model.fp8_layers} with model.kernels=te: Transformer Engine's layers are all in fp8; leave it "
                   "out, or use model.kernels=torch")
    elif not fp8_linears(model, tensor):
        name, (width_in, width_out) = max(linears(model.language, tensor).items(), key=lambda item: reach(*item[1]))
        share = f" a rank (layout.tensor={tensor})" if tensor > 1 else ""
        yield (f"model.fp8={model.fp8} gains nothing at this model's sizes{share}: its largest linear layer, {name}, is {width_in} "
               f"wide in and {width_out} out, and in x out / (in + out) = {reach(width_in, width_out):.0f}, below {PAYS} "
               "(docs/kernels.md); use model.fp8=none, or take it all the same with model.fp8_layers=mlp")


def fp8_sizes(run: Run) -> Iterator[str]:
    """Tokens of a row and each rank's widths of the decoder's linear layers."""
    model, tensor = run.model, run.layout.tensor
    if not (each := FP8_MULTIPLE.get(model.fp8)):
        return
    slices = tensor if run.layout.sequence else 1
    if run.data.pack_tokens % (each * slices):
        told = f" times layout.tensor={slices}, over which layout.sequence splits a row" if slices > 1 else ""
        below = run.data.pack_tokens // (each * slices) * each * slices
        yield (f"data.pack_tokens={run.data.pack_tokens} must be a multiple of {each}{told}, for model.fp8={model.fp8}: use "
               f"{below + each * slices}" + (f" or {below}" if below else ""))
    lm = model.language
    widths = {"hidden": (lm.hidden, (QKV, PROJ, FC1, FC2)), "heads x head_dim": (lm.heads * lm.head_dim // tensor, (PROJ,)),
              "ffn": (lm.ffn // tensor, (FC1, FC2)),
              "(heads + 2 kv_heads) x head_dim": ((lm.heads + 2 * lm.kv_heads) * lm.head_dim // tensor, (QKV,))}
    chosen = {QKV, PROJ, FC1, FC2} if model.kernels == "te" else {*fp8_linears(model, tensor)}
    for name, (width, layers) in widths.items():
        if width % each and chosen.intersection(layers):
            share = "" if tensor == 1 or name == "hidden" else f" a rank (layout.tensor={tensor})"
            yield (f"model.language's {name} of {width}{share} is no multiple of {each}, which model.fp8={model.fp8} needs: "
                   "use model.fp8=none")


KERNEL_RULES = (fp8_company, fp8_choice, fp8_sizes)
