"""Trains a recipe's stages for a few steps on however many ranks there are, and writes what each step reported.

    train_ranks.py OUT.json RECIPE STEPS [override ...]
"""

import json
import sys
from pathlib import Path

from nvlm_train.config.compose import compose
from nvlm_train.contracts import StepReport
from nvlm_train.data.loader import build_loader
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.training.builtin import with_builtin_data


def train_stage(run) -> tuple[bool, list[StepReport]]:
    engine = MegatronEngine(run)
    run = with_builtin_data(run, engine)
    loader = None
    if engine.reads_data:
        rounds = run.layout.pipeline if run.layout.virtual > 1 else 1
        loader = build_loader(run, load_tokenizer(run.model.tokenizer), engine.data_rank, engine.data_size, multiple=rounds)
    reports = [engine.train_step(batch, run.train.lr) for batch in engine.shared(loader)]
    if loader is not None:
        loader.close()
    engine.close()
    return engine.is_main, reports


def main() -> None:
    out, recipe, steps, *overrides = sys.argv[1:]
    curves = {}
    for run in compose([f"recipe={recipe}", f"train.steps={steps}", "train.warmup_steps=0", *overrides]):
        main_rank, reports = train_stage(run)
        curves[run.stage] = [{"loss": r.loss, "grad_norm": r.grad_norm, "rows": r.rows, "tokens": r.tokens} for r in reports]
    if main_rank:
        Path(out).write_text(json.dumps(curves))


if __name__ == "__main__":
    main()
