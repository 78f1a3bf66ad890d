"""The fast path beside the plain one on the CPU, measured and written as JSON; `test_fast_path` and `test_fast_curves` assert.

A process of its own, since preparing Megatron for the CPU changes torch. Arguments: the file to write, then the checks to make, each
`NAME` or `NAME:ARGUMENT:…`. Kernels are compiled only by checks whose last argument is `compiled`; the others call the same functions,
from the same places, as they are written.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy

from nvlm_train.config.compose import compose
from nvlm_train.engine import kernel_choice, megatron
from nvlm_train.kernels import plan_for
from nvlm_train.model import elementwise
from nvlm_train.model.loss import token_losses
from nvlm_train.parallel.groups import clear
from tests.kernels.reads import counted_reads
from tests.model.model_checks import step
from tests.model.rows import T, make_row

TRAINED = "train.trainable=[connector,language]"
# The rates of the parity tests: at the recipes' own, steps overshoot, and what overshoots doubles the rounding of every sum.
RATES = ("train.warmup_steps=0", "train.lr=5e-4", "train.min_lr=0")


def engine_of(fast: bool, *overrides: str, recipe: str = "nvlm_d_tiny") -> megatron.MegatronEngine:
    clear()
    wgrad = "product" if fast else "torch"
    kernel_choice.plan_for = lambda *machine: replace(plan_for(*machine), wgrad=wgrad)
    return megatron.MegatronEngine(compose([f"recipe={recipe}", "stage=sft", f"data.pack_tokens={T}", TRAINED, *RATES,
                                            f"model.compile={'on' if fast else 'off'}", *overrides])[0])


def uncompiled() -> None:
    elementwise.kernel.cache_clear()
    torch.compile = lambda function: function


def steps(engine, recipe: str, number: int, kinds=("image", "text")) -> list[list[float]]:
    """Loss and gradient norm of steps of two rows, over four pairs of rows in turn."""
    found = []
    for n in range(number):
        report = step(engine, *(make_row(recipe[:6], n % 4 + 10 * place, kind) for place, kind in enumerate(kinds)), lr=5e-4)
        found.append([report.loss, report.grad_norm])
    return found


def both(*overrides: str, recipe: str = "nvlm_d_tiny", number: int = 2) -> dict:
    return {name: steps(engine_of(name == "fast", *overrides, recipe=recipe), recipe, number) for name in ("fast", "plain")}


def parity(recipe: str, dtype: str) -> dict:
    uncompiled()
    return both(f"model.dtype={dtype}", recipe=recipe)


def variants() -> dict:
    """Recomputed layers, tied embeddings, a frozen language model, encoders with every setting of a layer."""
    uncompiled()
    wide = ("model.vision.norm=rms", "model.vision.qk_norm=true", "model.vision.qkv_bias=false", "model.vision.layer_scale=true")
    cases = {"full": ["model.recompute=full"], "selective": ["model.recompute=selective"], "tied": ["model.language.tie_embeddings=true"],
             "frozen": ["train.trainable=[connector]"], "encoder trained": ["train.trainable=[vision,connector,language]"],
             "rms, qk norm": wide, "quick gelu": ["model.vision.layer_scale=false", "model.vision.activation=quick_gelu"],
             "gelu tanh": ["model.vision.activation=gelu_tanh", "model.vision.final_norm=true"]}
    return {name: both(*overrides) for name, overrides in cases.items()}


def split() -> dict:
    """Over two tensor-parallel ranks: the encoder's heads padded, rows sliced along the sequence; and cross-entropy by itself."""
    uncompiled()
    layout = ("layout.tensor=2", "layout.sequence=true", "model.vision.qk_norm=true", "model.language.vocab=1023")
    return {"steps": both(*layout), "loss": loss_of_two_ranks()}


def loss_of_two_ranks() -> dict:
    """Largest differences of our cross-entropy to Megatron's, losses and gradients; the second rank's last columns, or all of them, are
    padding."""
    group, found = dist.group.WORLD, {}
    for dtype in (torch.float32, torch.bfloat16):
        for real in (40, 0):
            random = torch.Generator().manual_seed(0)
            logits, labels = torch.randn(37, 200, generator=random) * 4, torch.randint(0, 100 + real, (37,), generator=random)
            logits = logits[:, 100 * group.rank():][:, :100].to(dtype).contiguous()
            if group.rank() == 1:
                logits[:, real:] = -torch.inf
            weights = torch.rand(37, generator=random)
            results = []
            for ours in (True, False):
                x = logits.clone().requires_grad_()
                losses = token_losses(x * 1, labels, group, at_once=500) if ours else vocab_parallel_cross_entropy(
                    x.float()[:, None], labels[:, None])[:, 0]
                (gradient,) = torch.autograd.grad((losses * weights).sum(), x)
                results.append((losses.detach(), gradient.float()))
            (a, b), (c, d) = results
            found[f"{dtype} {real}"] = [float((a - c).abs().max()), float((b - d).abs().max())]
    return found


def waits() -> dict:
    """What the host read from the device in a step of two rows, and of six."""
    uncompiled()
    found: dict = {}
    engine = engine_of(True, recipe="nvlm_h_tiny")
    for rows in (2, 6):
        batch = [make_row("nvlm_h", n, "text" if n == 1 else "image") for n in range(rows)]
        step(engine, *batch)
        found[rows] = counted_reads(engine, lambda batch=batch: step(engine, *batch))
    weight = engine.stages()[0].language.decoder.final_layernorm.weight.detach()
    found["control"] = counted_reads(engine, lambda: (float(weight.sum()), (weight * 2).tolist(), weight.nonzero()))
    return found


def curve(recipe: str, dtype: str, number: str, way: str = "") -> dict:
    """Both paths, and the plain one from weights that are each moved by about a rounding of the dtype."""
    if way != "compiled":
        uncompiled()
    found = both(f"model.dtype={dtype}", recipe=recipe, number=int(number))
    engine, random = engine_of(False, f"model.dtype={dtype}", recipe=recipe), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in engine.stages()[0].parameters():
            param.mul_(1 + torch.randn(param.shape, generator=random) * {"fp32": 2**-24, "bf16": 2**-9}[dtype])
    engine.optimizer.reload_model_params()
    return found | {"moved": steps(engine, recipe, int(number))}


CHECKS = {check.__name__: check for check in (parity, variants, split, waits, curve)}

if __name__ == "__main__":
    out, *wanted = sys.argv[1:]
    facts = {word: CHECKS[word.split(":")[0]](*word.split(":")[1:]) for word in wanted}
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(facts))
