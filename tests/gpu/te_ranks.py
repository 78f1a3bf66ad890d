"""Transformer Engine and apex on a GPU against torch, measured on one process and written as JSON; `test_kernels_te` asserts.

Every error is the relative difference, over a whole tensor, to the same formula in fp32 on the same bf16 inputs. Arguments: the
file to write, the checks to make.
"""

import json
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nvlm_train.config.compose import compose
from nvlm_train.engine.checkpoint import CheckpointStore, SaveFacts, load
from nvlm_train.engine.megatron import MegatronEngine, whole_model_names
from nvlm_train.engine.optimizer import AdamW
from nvlm_train.model.attention import _by_mask, packing
from nvlm_train.model.decoder import rotary_angles
from nvlm_train.parallel.groups import clear
from tests.model.model_checks import step
from tests.model.rows import T, make_row

EDGES = [0, 100, 357, 512]
BF16, CUDA = torch.bfloat16, "cuda"


def engine_of(*overrides: str, recipe: str = "nvlm_d_tiny") -> MegatronEngine:
    clear()
    return MegatronEngine(compose([f"recipe={recipe}", "stage=sft", f"data.pack_tokens={T}",
                                   "train.trainable=[connector,language]", *overrides])[0])


def _drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    random = torch.Generator(CUDA).manual_seed(0)
    return [torch.randn(shape, generator=random, device=CUDA, dtype=BF16) for shape in shapes]


def error(got: Tensor, reference: Tensor) -> float:
    return float((got.float() - reference).norm() / reference.norm())


def _both_ways(run, reference, inputs: list[Tensor]) -> list[float]:
    """Errors of the output and of the gradient of every input, under one random incoming gradient."""
    outs = []
    for function, dtype in ((run, BF16), (reference, torch.float32)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = function(*leaves)
        random = torch.Generator(CUDA).manual_seed(1)
        out.backward(torch.randn(out.shape, generator=random, device=CUDA, dtype=BF16).to(dtype))
        outs.append([out.detach(), *(leaf.grad for leaf in leaves)])
    return [error(got, expected) for got, expected in zip(*outs, strict=True)]


def norm_and_linear() -> dict:
    """The layer takes no weights from outside, so they are put into it and their gradients read from it."""
    import transformer_engine.pytorch as te

    x, weight, grad = _drawn((512, 1024), (3072, 1024), (512, 3072))
    gain = torch.linspace(0.5, 1.5, 1024, device=CUDA, dtype=BF16)
    layer = te.LayerNormLinear(1024, 3072, eps=1e-6, bias=False, normalization="RMSNorm", params_dtype=BF16)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.layer_norm_weight.copy_(gain)
    leaf = x.clone().requires_grad_()
    out = layer(leaf)
    out.backward(grad)
    ours = [value.float().requires_grad_() for value in (x, gain, weight)]
    reference = F.rms_norm(ours[0], (1024,), ours[1], 1e-6) @ ours[2].t()
    reference.backward(grad.float())
    found = zip((out, leaf.grad, layer.layer_norm_weight.grad, layer.weight.grad), (reference, *(value.grad for value in ours)),
                strict=True)
    return {"names": sorted(dict(layer.named_parameters())),
            "te": [error(got.detach(), expected.detach()) for got, expected in found]}


def rope() -> dict:
    from megatron.core.extensions.transformer_engine import fused_apply_rotary_pos_emb

    (q,) = _drawn((512, 1, 8, 64))
    positions = torch.cat([torch.arange(b - a) for a, b in pairwise(EDGES)]).to(CUDA)
    angles = rotary_angles(positions, 64, 1e6)

    def plain(q):
        a, b = q.chunk(2, -1)
        return q * angles.cos() + torch.cat((-b, a), -1) * angles.sin()

    return {"te": _both_ways(lambda q: fused_apply_rotary_pos_emb(q, angles), plain, [q])}


def attention() -> dict:
    """The decoder's own attention module, its config and groups included, on rows of three samples."""
    engine = engine_of("model.kernels=te", "model.dtype=bf16")
    core = engine.stages()[0].language.decoder.layers[0].self_attention.core_attention
    lm = engine.run.model.language
    cu_seqlens = torch.tensor(EDGES, dtype=torch.int32, device=CUDA)
    row = packing(cu_seqlens, 257, EDGES)
    q, k, v = _drawn(*((512, heads, lm.head_dim) for heads in (lm.heads, lm.kv_heads, lm.kv_heads)))

    def fused(q, k, v):
        return core(q[:, None], k[:, None], v[:, None], packed_seq_params=row).view(512, lm.heads, lm.head_dim)

    def plain(q, k, v):
        return _by_mask(q, k, v, cu_seqlens, None)

    other = [x.clone() for x in (q, k, v)]
    for x in other:
        x[EDGES[1]:EDGES[2]] = x[EDGES[1]:EDGES[2]].flip(0)
    with torch.no_grad():
        before, after = fused(q, k, v), fused(*other)
    changed = [not torch.equal(before[a:b], after[a:b]) for a, b in pairwise(EDGES)]
    return {"te": _both_ways(fused, plain, [q, k, v]), "changed": changed}


def apex_norm() -> dict:
    from apex.normalization.fused_layer_norm import fused_rms_norm_affine

    x, gain = _drawn((512, 1024), (1024,))
    return {"apex": _both_ways(lambda x, gain: fused_rms_norm_affine(x, gain, (1024,), 1e-6),
                               lambda x, gain: F.rms_norm(x, (1024,), gain, 1e-6), [x, gain])}


def adam() -> dict:
    """Twenty steps on the same gradients, in fp32. How far each fused one ends from ours, in steps (learning rates)."""
    settings = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    random = torch.Generator(CUDA).manual_seed(0)
    start = torch.randn(1000, generator=random, device=CUDA)
    gradients = [torch.randn(1000, generator=random, device=CUDA) for _ in range(20)]
    found, ends = {}, {}
    for name, module in (("torch", None), ("te", "transformer_engine.pytorch.optimizers"), ("apex", "apex.optimizers")):
        try:
            cls = AdamW if module is None else import_module(module).FusedAdam
        except ImportError:
            continue
        p = torch.nn.Parameter(start.clone())
        optimizer = cls([p], **settings)
        for gradient in gradients:
            p.grad = gradient.clone()
            optimizer.step()
        ends[name] = p.detach()
        found[name] = {"steps": float((ends[name] - ends["torch"]).abs().max()) / settings["lr"],
                       "state": sorted(optimizer.state[p]), "group": optimizer.param_groups[0]["step"]}
    return found


def exchange(folder: Path) -> dict:
    """Saved under one choice, loaded under the other: every weight, and the loss of the next step."""
    found = {}
    for number, (first, second) in enumerate((("torch", "te"), ("te", "torch"))):
        engine = engine_of(f"model.kernels={first}", "model.dtype=bf16")
        for at in range(2):
            step(engine, make_row("nvlm_d", at))
        store = CheckpointStore(folder / str(number), 1)
        store.save(engine, SaveFacts("sft", {}, {}, 0), step=2)
        weights = {name: p.detach().clone() for name, p in whole_model_names(engine.stages()[0])}
        undisturbed = step(engine, make_row("nvlm_d", 3)).loss
        other = engine_of(f"model.kernels={second}", "model.dtype=bf16", "train.seed=7")
        load(store.latest(), other, {})
        equal = all(torch.equal(p, weights[name]) for name, p in whole_model_names(other.stages()[0]))
        loaded = step(other, make_row("nvlm_d", 3)).loss
        found[f"{first} to {second}"] = {"equal": equal, "undisturbed": undisturbed, "loaded": loaded}
    return found


CHECKS = {check.__name__: check for check in (norm_and_linear, rope, attention, apex_norm, adam)}

if __name__ == "__main__":
    out, *wanted = sys.argv[1:]
    facts = {name: exchange(Path(out).parent / "stored") if name == "exchange" else CHECKS[name]() for name in wanted}
    Path(out).write_text(json.dumps(facts))
