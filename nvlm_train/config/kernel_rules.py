"""Rules of fp8: what it needs besides itself, and sizes that its matrix products divide into (see `rules`).

What only the machine knows (is Transformer Engine there, can the GPU do it) `nvlm_train.kernels` says when the engine is built.
"""

from collections.abc import Iterator

from nvlm_train.config.schema import Run

# Every side of an fp8 matrix product, in the forward and both backward ones, so tokens too. 16: the tensor cores' (Megatron-Core
# aligns to the same); 32: one scale of mxfp8 stands for so many numbers.
FP8_MULTIPLE = {"current": 16, "delayed": 16, "mxfp8": 32}


def fp8_company(run: Run) -> Iterator[str]:
    """fp8 is Transformer Engine's, of bf16 models, on GPUs."""
    model = run.model
    if model.fp8 not in FP8_MULTIPLE:
        return
    if model.kernels != "te":
        yield f"model.fp8={model.fp8} needs model.kernels=te, it is {model.kernels}: set that, or use model.fp8=none"
    if model.dtype == "fp32":
        yield f"model.fp8={model.fp8} with model.dtype=fp32: fp8 is rounded from bf16; use model.dtype=bf16, or model.fp8=none"
    if run.run.device == "cpu":
        yield f"model.fp8={model.fp8} with run.device=cpu: only GPUs compute in fp8; use model.fp8=none"


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
    widths = {"hidden": lm.hidden, "heads x head_dim": lm.heads * lm.head_dim // tensor, "ffn": lm.ffn // tensor,
              "(heads + 2 kv_heads) x head_dim": (lm.heads + 2 * lm.kv_heads) * lm.head_dim // tensor}
    for name, width in widths.items():
        if width % each:
            share = "" if tensor == 1 or name == "hidden" else f" a rank (layout.tensor={tensor})"
            yield (f"model.language's {name} of {width}{share} is no multiple of {each}, which model.fp8={model.fp8} needs: "
                   "use model.fp8=none")


KERNEL_RULES = (fp8_company, fp8_sizes)
