"""The engine with fp8 products on the CPU, measured and written as JSON; `test_fp8_engine` asserts.

Arguments: the file to write, then the checks to make, each `NAME` or `NAME:ARGUMENT:…`.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from nvlm_train.config.compose import compose
from nvlm_train.engine import megatron
from nvlm_train.engine.checkpoint import CheckpointStore, SaveFacts, load
from nvlm_train.model import fp8_linear
from nvlm_train.model.fp8_cast import PLAIN, round_input, turned
from nvlm_train.parallel.groups import clear
from tests.kernels import fp8_seam
from tests.model.model_checks import parameters, step
from tests.model.rows import T, make_row
from tests.parity.train_ranks import RATES, train_stage

fp8_seam.install()

FP8 = ("model.fp8=current", "model.fp8_layers=all")
MLP = ("model.fp8=current", "model.fp8_layers=mlp")
TRAINED = "train.trainable=[connector,language]"


def engine_of(*overrides: str, recipe: str = "nvlm_d_tiny") -> megatron.MegatronEngine:
    clear()
    return megatron.MegatronEngine(compose([f"recipe={recipe}", "stage=sft", f"data.pack_tokens={T}", *overrides])[0])


def _steps(engine, numbers, recipe: str = "nvlm_d_tiny") -> list[list[float]]:
    rows = [(make_row(recipe[:6], n), make_row(recipe[:6], n + 10)) for n in numbers]
    return [[report.loss, report.grad_norm] for report in (step(engine, *pair) for pair in rows)]


def _products(engine) -> list[fp8_linear.Fp8Product]:
    return engine.stages()[0].language.fp8_products


class Counted:
    """The casts of weights, which begin where a parameter does, and of inputs."""

    def __init__(self, engine):
        self.places = {p.data_ptr() for p in engine.stages()[0].parameters()}
        self.of_weights = self.of_inputs = 0
        for product in _products(engine):
            product.casts = PLAIN._replace(input=self.cast)

    def cast(self, x):
        if x.data_ptr() in self.places:
            self.of_weights += 1
        else:
            self.of_inputs += 1
        return round_input(x)

    def take(self) -> list[int]:
        found = [self.of_weights, self.of_inputs]
        self.of_weights = self.of_inputs = 0
        return found


def casts() -> dict:
    """How often weights and inputs are cast in steps of two rows; whether what is used after a step is the weight after the step. In
    bf16, where the optimizer copies its fp32 masters into the weights."""
    engine = engine_of(TRAINED, *MLP, "model.dtype=bf16")
    counted = Counted(engine)
    found = {"products": len(_products(engine))}
    _steps(engine, [0])
    found["first step"] = counted.take()
    layer = engine.stages()[0].language.decoder.layers[1].mlp.linear_fc1
    before, version = layer.weight.detach().clone(), layer.weight._version
    _steps(engine, [1])
    found["second step"] = counted.take()
    found["moved"], found["told by torch"] = not torch.equal(layer.weight, before), layer.weight._version != version
    engine.logits(make_row("nvlm_d", 1), torch.arange(T))
    counted.take()
    engine.logits(make_row("nvlm_d", 2), torch.arange(T))
    found["second logits"] = counted.take()
    rows, columns = layer._forward_impl._weight
    fresh = round_input(layer.weight.detach())
    found["fresh"] = bool(torch.equal(rows.values.float(), fresh.values.float()) and rows.scale == columns.scale == fresh.scale
                          and torch.equal(columns.values.float(), turned(fresh.values).float()))
    with torch.no_grad():
        layer.weight.mul_(2)
    engine.logits(make_row("nvlm_d", 2), torch.arange(T))
    found["after a write in the open"] = counted.take()
    return found


def frozen() -> dict:
    """Stage 1: casts of frozen weights outlive steps, nothing is kept of inputs, and the connector learns as without fp8."""
    found = {}
    for name, words in (("plain", ()), ("fp8", FP8)):
        engine = engine_of("train.trainable=[connector]", *words)
        counted = Counted(engine)
        found[name] = _steps(engine, range(2))
        found[f"{name} casts"] = counted.take()
    state = engine.sharded_state(loading=False)
    engine.load_state({"model": {key: value.data for key, value in state["model"].items()}})
    _steps(engine, [0])
    found["after a load"] = counted.take()
    return found


def recomputed() -> dict:
    return {recompute: _steps(engine_of(TRAINED, *FP8, f"model.recompute={recompute}"), range(3))
            for recompute in ("none", "selective", "full")}


def exchange(first: str, second: str) -> dict:
    """Trained one way, saved, gone on the other way: against going on the first way."""
    words = {"plain": (), "fp8": FP8}
    engine = engine_of(TRAINED, *words[first])
    _steps(engine, range(2))
    store = CheckpointStore(Path(sys.argv[1]).parent / f"{first}-{second}", 1)
    store.save(engine, SaveFacts("sft", {}, {}, 0), step=2)
    saved, names = parameters(engine), sorted(engine.sharded_state(loading=False)["model"])
    undisturbed = _steps(engine, range(2, 4))
    other = engine_of(TRAINED, "train.seed=7", *words[second])
    other.logits(make_row("nvlm_d", 0), torch.arange(T))        # casts are made of weights that are to be replaced
    load(store.latest(), other, {})
    return {"names": names == sorted(other.sharded_state(loading=False)["model"]),
            "equal": all(torch.equal(p, saved[name]) for name, p in parameters(other).items()),
            "undisturbed": undisturbed, "loaded": _steps(other, range(2, 4))}


def not_a_number() -> dict:
    """One weight so large that a product overflows: the step is left out, on all sides, and the next ones too; nothing is clipped."""
    engine = engine_of(TRAINED, *FP8)
    weight = engine.stages()[0].language.decoder.layers[0].mlp.linear_fc2.weight
    with torch.no_grad():
        weight[0, 0] = torch.inf
    before = parameters(engine)
    report = step(engine, make_row("nvlm_d", 1))
    return {"loss": report.loss, "skipped": report.skipped,
            "same": all(torch.equal(p, before[name]) for name, p in parameters(engine).items())}


def reading(recipe: str) -> dict:
    """NVLM-X and -H: which layers' products are replaced, and two steps beside those without fp8."""
    expected = _steps(engine_of(TRAINED, recipe=recipe), range(2), recipe)
    engine = engine_of(TRAINED, *FP8, recipe=recipe)
    named = engine.stages()[0].language.decoder.named_modules()
    inside = sorted({name.partition(".")[2].partition(".")[2] for name, module in named
                     if isinstance(vars(module).get("_forward_impl"), fp8_linear.Fp8Product)})
    return {"inside": inside, "plain": expected, "fp8": _steps(engine, range(2), recipe)}


def summed_in_the_product() -> dict:
    """Layers in bf16 that add up their own weight gradients beside layers in fp8, which leave it to data parallelism."""
    found = {}
    for way in ("torch", "product"):
        fp8_seam.CHANGED["wgrad"] = way
        found[way] = _steps(engine_of(TRAINED, *MLP), range(2))
    fp8_seam.CHANGED.clear()
    return found


def layouts() -> dict:
    """On two ranks: the model split over them, the sequence sliced too, each with its own whole model, and that without fp8. How far a
    row's logits are from the last's, and two steps (where each rank has a model of its own, on the same rows: their mean is either's)."""
    ways = {"plain": (), "whole": FP8, "split": (*FP8, "layout.tensor=2"), "sliced": (*FP8, "layout.tensor=2", "layout.sequence=true")}
    found, logits = {}, {}
    for name, words in ways.items():
        engine = engine_of(TRAINED, *words)
        logits[name] = engine.logits(make_row("nvlm_d", 1), torch.arange(T))
        found[name] = {"off": float((logits[name] - logits["plain"]).norm() / logits["plain"].norm()), "steps": _steps(engine, range(2))}
    return found | {"slicing": torch.equal(logits["split"], logits["sliced"])}


def curve(steps: str) -> dict:
    """The tiny recipe's second stage on its own data, in bf16: losses without fp8 and with it."""
    found = {}
    for name, own in {"plain": (), "fp8": FP8}.items():
        clear()
        (run,) = compose(["recipe=nvlm_d_tiny", "stage=sft", f"train.steps={steps}", *RATES, TRAINED, "model.dtype=bf16", *own])
        found[name] = [row["loss"] for row in train_stage(run)[1]]
    return found


CHECKS = {check.__name__: check for check in (casts, frozen, recomputed, exchange, not_a_number, reading, summed_in_the_product, layouts, curve)}

if __name__ == "__main__":
    out, *wanted = sys.argv[1:]
    facts = {word: CHECKS[word.split(":")[0]](*word.split(":")[1:]) for word in wanted}
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(facts | {"ranks": dist.get_world_size()}))
