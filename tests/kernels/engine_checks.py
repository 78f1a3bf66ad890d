"""The engine on stand-ins for Transformer Engine and apex, measured and written as JSON; `test_engine_wiring` asserts.

A process of its own: the stand-ins must be there before Megatron-Core is imported. Arguments: the file to write, then the checks
to make, each `NAME` or `NAME:ARGUMENT:…`.
"""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tests.kernels import fake_apex, fake_te

fake_te.install()
fake_apex.install()

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedObject

from nvlm_train.config.compose import compose
from nvlm_train.engine import kernel_choice, megatron
from nvlm_train.engine.checkpoint import CheckpointStore, SaveFacts, load
from nvlm_train.kernels import Found, decide, plan_for
from nvlm_train.parallel.groups import clear
from tests.model.model_checks import parameters, step
from tests.model.rows import T, make_row

BLACKWELL = Found("cuda", (10, 0), varlen=True, te=None, apex=None, apex_wgrad=None)
TRAINED = "train.trainable=[connector,language]"


def _plan(model, device, dtype):
    """This machine's for torch; what a Blackwell GPU would get for the others, with torch's parts on the CPU's way."""
    if model.kernels in ("auto", "torch"):
        return plan_for(model, device, dtype)
    plan = decide(model, "bf16", BLACKWELL)
    return replace(plan, cross_attention="segments", attention="te" if plan.attention == "te" else "segments")


kernel_choice.plan_for = _plan


def engine_of(kernels: str, *overrides: str, recipe: str = "nvlm_d_tiny"):
    clear()
    return megatron.MegatronEngine(compose([f"recipe={recipe}", "stage=sft", f"data.pack_tokens={T}", f"model.kernels={kernels}",
                                            *overrides])[0])


def named(engine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in megatron.whole_model_names(engine.stages()[0])}


def _rows(recipe: str, number: int):
    return make_row(recipe[:6], number), make_row(recipe[:6], number + 10)


def _steps(engine, numbers, recipe: str = "nvlm_d_tiny") -> list[list[float]]:
    return [[report.loss, report.grad_norm] for report in (step(engine, *_rows(recipe, n)) for n in numbers)]


def _calls(kind: str) -> list[dict]:
    """Facts of the calls of attention, or of linear layers."""
    return [facts for name, facts in fake_te.CALLS if (name == "attention") == (kind == "attention")]


def parity(recipe: str) -> dict:
    """Logits, then two steps of two rows, by each choice of kernels."""
    found = {}
    for kernels in ("torch", "te", "apex"):
        fake_te.CALLS.clear(), fake_apex.CALLS.clear()
        engine = engine_of(kernels, TRAINED, recipe=recipe)
        row = make_row(recipe[:6], 1)
        logits = engine.logits(row, torch.arange(T))
        optimizer = getattr(engine.optimizer, "chained_optimizers", [engine.optimizer])[0].optimizer
        found[kernels] = {
            "logits": logits.tolist()[::40], "steps": _steps(engine, range(2), recipe), "names": sorted(named(engine)),
            "adam": type(optimizer).__module__.split(".")[-1], "te": Counter(name for name, _ in fake_te.CALLS),
            "apex": Counter(fake_apex.CALLS), "samples": sorted({facts["samples"] for facts in _calls("attention")}),
            "fused": all(facts["fused"] for facts in _calls("linear")), "layers": engine.run.model.language.layers,
            "reading": len(engine.stages()[0].cross_layers), "edges": len(row.cu_seqlens) - 1}
    return found


def exchange(first: str, second: str) -> dict:
    """Trained under one choice, saved, gone on under another: against going on under the first."""
    engine = engine_of(first, TRAINED)
    _steps(engine, range(2))
    state = engine.sharded_state(loading=False)["model"]
    extra = {type(value.data).__name__ for value in state.values() if isinstance(value, ShardedObject)}
    store = CheckpointStore(Path(sys.argv[1]).parent / f"{first}-{second}", 1)
    store.save(engine, SaveFacts("sft", {}, {}, 0), step=2)
    undisturbed = _steps(engine, range(2, 4))
    other = engine_of(second, TRAINED, "train.seed=7")
    load(store.latest(), other, {})
    steps = {group.get("step") for group in other.optimizer.param_groups if group["params"]}
    return {"undisturbed": undisturbed, "loaded": _steps(other, range(2, 4)), "extra": sorted(extra), "steps": sorted(steps)}


def patterns() -> dict:
    """What trains, and what stands still, where freezing and rates speak of norms that are inside a linear layer."""
    norms = "language.decoder.layers.*.input_layernorm.*"
    engine = engine_of("te", f"train.trainable=[{norms}]")
    before = named(engine)
    step(engine, make_row("nvlm_d", 1))
    trained = sorted(name for name, p in named(engine).items() if not torch.equal(p, before[name]))
    engine = engine_of("te", TRAINED, f"+train.lr_multipliers={{{norms}:0.0}}")
    before = named(engine)
    step(engine, make_row("nvlm_d", 1))
    still = sorted(name for name, p in named(engine).items() if name.startswith("language.") and torch.equal(p, before[name]))
    return {"trained": trained, "still": still}


def frozen() -> dict:
    """Stage 1: no gradient reaches a frozen layer's weights, nor is any asked for."""
    return {kernels: _steps(engine_of(kernels, "train.trainable=[connector]"), range(2)) for kernels in ("torch", "te")}


def recomputed() -> dict:
    """A layer that runs its forward twice still adds each weight gradient up once."""
    return {recompute: _steps(engine_of("te", TRAINED, f"model.recompute={recompute}"), range(3))
            for recompute in ("none", "selective", "full")}


def fp8(recipe: str) -> dict:
    engine = engine_of("te", TRAINED, f"model.fp8={recipe}", recipe="nvlm_h_tiny")
    fake_te.CALLS.clear()
    _steps(engine, range(2), "nvlm_h_tiny")
    linear = _calls("linear")
    sides = {side % 16 for facts in linear for side in (facts["tokens"], *facts["widths"])}
    return {"recipes": sorted({str(facts["recipe"]) for facts in linear}), "sides": sorted(sides),
            "config": [engine.config.fp8, engine.config.fp8_recipe],
            "calls": len(linear), "first": sum(bool(facts["first"]) for facts in linear)}


def tied() -> dict:
    """apex's product that adds up its own weight gradient, and an embedding that is the output layer too."""
    found = {}
    for kernels in ("torch", "apex"):
        engine = engine_of(kernels, TRAINED, "model.language.tie_embeddings=true")
        steps = _steps(engine, range(3))
        found[kernels] = {"steps": steps, "sum": sum(float(p.double().sum()) for p in parameters(engine).values())}
    return found


def sliced() -> dict:
    """On two ranks: layers split over them, rows sliced along the sequence."""
    layout = ("layout.tensor=2", "layout.sequence=true")
    return {kernels: _steps(engine_of(kernels, TRAINED, *layout), range(3)) for kernels in ("torch", "te")}


CHECKS = {check.__name__: check for check in (parity, exchange, patterns, frozen, recomputed, fp8, tied, sliced)}

if __name__ == "__main__":
    out, *wanted = sys.argv[1:]
    facts = {word: CHECKS[word.split(":")[0]](*word.split(":")[1:]) for word in wanted}
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(facts | {"ranks": dist.get_world_size()}))
