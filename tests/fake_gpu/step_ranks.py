"""Trains D, X and H on a GPU as a job does, both stages in bf16; what each step reported, and what the host waited for in it."""

import json
import sys
from pathlib import Path

from nvlm_train.config.compose import compose
from nvlm_train.data.loader import build_loader
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.training.builtin import with_builtin_data
from tests.fake_gpu import gpu
from tests.parity.train_ranks import RATES


def steps(run) -> tuple[list[dict], str]:
    engine = MegatronEngine(run)
    run = with_builtin_data(run, engine)
    loader = build_loader(run, load_tokenizer(run.model.tokenizer), engine.data_rank, engine.data_size, pinned=True)
    device, found = gpu.enable(), []
    for batch in engine.shared(loader):
        device.forget()
        report = engine.train_step(batch, run.train.lr)
        found.append({"loss": report.loss, "rows": report.rows, "waits": device.waits()})
    loader.close()
    engine.close()
    return found, engine.kernels.line()


def main() -> None:
    out, *overrides = sys.argv[1:]
    found = {}
    for recipe in ("nvlm_d_tiny", "nvlm_x_tiny", "nvlm_h_tiny"):
        for run in compose([f"recipe={recipe}", "train.steps=3", *RATES, *overrides]):
            curve, plan = steps(run)
            found[f"{recipe} {run.stage}"] = {"steps": curve, "plan": plan}
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
