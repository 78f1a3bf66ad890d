"""Trains the stages of some recipes for a few steps on however many ranks there are, and writes what each step reported.

    train_ranks.py OUT.json RECIPE[,RECIPE...] STEPS [override ...]

Several recipes share one job: starting processes costs as much as training these. Overrides of model.cross_attention go to the
architectures that have it.
"""

import json
import math
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from nvlm_train.config.compose import compose
from nvlm_train.data.loader import build_loader
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.model.freeze import matches
from nvlm_train.training.builtin import with_builtin_data

# A quarter of the recipes' rate: at 2e-3 from the first step on, steps of the frozen stage overshoot, and what overshoots doubles the
# rounding of every sum from step to step (after 20 steps 1e-5 of the loss, as much between packed and unpacked as between layouts).
RATES = ("train.global_batch=8", "train.warmup_steps=0", "train.lr=5e-4", "train.min_lr=0")

# Parts whose gradients are compared one by one; a slip in a small part would drown in the norm of all.
PARTS = {"connector": lambda name: matches("connector", name), "gates": lambda name: name.endswith(".gate"),
         "cross-attention": lambda name: matches("cross_attention", name) and not name.endswith(".gate")}


def part_norms(engine: MegatronEngine) -> dict[str, float]:
    """Gradient norm of each part over all ranks: every rank adds the shards that its optimizer keeps, replicated ones once."""
    squares = torch.zeros(len(PARTS), dtype=torch.float64)
    optimizers = getattr(engine.optimizer, "chained_optimizers", [engine.optimizer])
    for optimizer in optimizers:
        for param in getattr(optimizer, "model_param_gbuf_map", {}):
            if not getattr(param, "tensor_model_parallel", False) and engine.groups.tensor_rank:
                continue
            own = optimizer._get_model_param_range_map(param)["param"]
            square = param.main_grad.flatten()[own.start:own.end].double().square().sum()
            name = next(name for stage in engine.stages() for name, other in stage.named_parameters() if other is param)
            squares += torch.tensor([square if within(name) else 0.0 for within in PARTS.values()], dtype=torch.float64)
    dist.all_reduce(squares)
    return {part: math.sqrt(square) for part, square in zip(PARTS, squares.tolist()) if square}


def train_stage(run) -> tuple[bool, list[dict]]:
    engine = MegatronEngine(run)
    run = with_builtin_data(run, engine)
    loader = None
    if engine.reads_data:
        rounds = run.layout.pipeline if run.layout.virtual > 1 else 1
        loader = build_loader(run, load_tokenizer(run.model.tokenizer), engine.data_rank, engine.data_size, multiple=rounds)
    steps = []
    for batch in engine.shared(loader):
        report = engine.train_step(batch, run.train.lr)
        steps.append({"loss": report.loss, "grad_norm": report.grad_norm, "rows": report.rows, "tokens": report.tokens}
                     | part_norms(engine))
    if loader is not None:
        loader.close()
    engine.close()
    return engine.is_main, steps


def main() -> None:
    out, recipes, steps, *overrides = sys.argv[1:]
    curves = {}
    for recipe in recipes.split(","):
        own = [text for text in overrides if recipe[:6] != "nvlm_d" or not text.startswith("model.cross_attention.")]
        curves[recipe] = {}
        for run in compose([f"recipe={recipe}", f"train.steps={steps}", *RATES, *own]):
            main_rank, curves[recipe][run.stage] = train_stage(run)
    if main_rank:
        Path(out).write_text(json.dumps(curves))


if __name__ == "__main__":
    main()
