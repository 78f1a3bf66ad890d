"""The designs that NVLM is compared with, and NVLM-X and -H: 20 steps of each stage, and exactly what each says it trains moves."""

import json
import math
from contextlib import closing

import pytest
import torch

from nvlm_train.config.compose import compose
from nvlm_train.data.loader import build_loader
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.engine.checkpoint import load, resolve
from nvlm_train.engine.manifest import Manifest
from nvlm_train.model.freeze import is_cross_attention
from nvlm_train.parallel import groups
from nvlm_train.training.builtin import with_builtin_data
from nvlm_train.training.stages import build_engine, train_all

pytestmark = pytest.mark.slow
STEPS = 20
# What a design trains in (pretraining, finetuning); whether a row of its finetuning has visual tokens in the sequence, and a memory.
DESIGNS = {
    "nvlm_x_tiny": ({"connector", "cross_attention"}, {"connector", "cross_attention", "language"}, False, True),
    "nvlm_h_tiny": ({"connector", "cross_attention"}, {"connector", "cross_attention", "language"}, True, True),
    "llava_tiny": ({"connector"}, {"connector", "language"}, True, False),
    "internvl2_tiny": ({"vision", "connector"}, {"vision", "connector", "language"}, True, False),
    "flamingo_tiny": ({"connector", "cross_attention"}, {"connector", "cross_attention"}, False, True),
    "llama3v_tiny": ({"vision", "connector", "cross_attention"}, {"vision", "connector", "cross_attention"}, False, True),
}


@pytest.fixture(scope="module", autouse=True)
def job():
    yield
    groups.stop()


def parts(engine) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, param in engine.stages()[0].named_parameters():
        part = "cross_attention" if is_cross_attention(name) else name.split(".")[0]
        found.setdefault(part, {})[name] = param.detach().clone()
    return found


def moved(before: dict, after: dict) -> set[str]:
    return {part for part, tensors in before.items() if any(not torch.equal(t, after[part][name]) for name, t in tensors.items())}


MORE = ("llava_tiny", "internvl2_tiny", "flamingo_tiny")      # whose parts the others train too: only in `make test-all`


@pytest.mark.parametrize("recipe", [pytest.param(name, marks=pytest.mark.full) if name in MORE else name for name in DESIGNS])
def test_design_trains_what_it_says(recipe, tmp_path):
    pretrained, finetuned, shown, remembered = DESIGNS[recipe]
    runs = compose([f"recipe={recipe}", f"train.steps={STEPS}", "train.global_batch=8", "train.warmup_steps=2", "run.eval_batches=1",
                    "run.examples=2", "run.device=cpu", f"run.dir={tmp_path}"])
    train_all(runs)
    states = []
    for run in runs:
        with closing(build_engine(run)) as engine:
            states = states or [parts(engine)]
            checkpoint = resolve(tmp_path / "checkpoints" / run.stage)
            load(checkpoint, engine, Manifest.read(checkpoint).fingerprint, model_only=True)
            states.append(parts(engine))
            if run.stage == "sft":
                run = with_builtin_data(run, engine)
                with build_loader(run, load_tokenizer(run.model.tokenizer), 0, 1) as loader:
                    rows = next(iter(loader)).rows
    assert moved(states[0], states[1]) == pretrained and moved(states[1], states[2]) == finetuned
    starts = torch.cat([row.tile_starts_n for row in rows])
    assert (bool((starts >= 0).any()), bool((starts < 0).any())) == (shown, remembered)

    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 2 * STEPS and all(math.isfinite(step["loss"]) and step["grad_norm"] > 0 for step in steps)
    if "language" in finetuned:     # a frozen random language model has little to learn from; the others do
        sft = [step["loss"] for step in steps if step["stage"] == "sft"]
        assert sum(sft[-5:]) < 0.8 * sum(sft[:5])
    assert (tmp_path / "predictions.jsonl").stat().st_size > 0
