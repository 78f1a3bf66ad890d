"""Make the demo's small backbones anew: `python -m data_prep.backbones [RUNS]` (about 40 minutes on one quiet core).

The demo needs a language model that can already do sums and a vision encoder that can already see, as the paper starts from
Qwen2 and InternViT. Both are trained by this package's own trainer on the demo's training data, never on its test data:
first the language model on text alone (recipe demo_language), then, on top of it, the encoder with everything unfrozen
(recipe demo_vision), of which only the encoder is kept. RUNS (default runs/backbones) holds the two runs; training goes on where it
left off.

The shipped encoder's run was stopped at step 388 of a schedule of 2,400 steps and finished on one of 1,500, on two processes, at step
1,200: made anew it is as good, not the same to the bit.
"""

import logging
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from data_prep.demo import LANGUAGE, VISION
from nvlm_train.config.compose import compose
from nvlm_train.evaluation.commands import open_model
from nvlm_train.model.weights import component_tensors
from nvlm_train.training.stages import train_all


def make(component: str, overrides: list[str], target: Path) -> None:
    """Train the run that `overrides` describe, and keep one component of its last checkpoint (in half precision)."""
    runs = compose(overrides)
    train_all(runs)
    model = open_model(runs, runs[-1].run.dir)
    tensors = component_tensors(model.engine.stages(), component)
    model.engine.close()
    target.parent.mkdir(exist_ok=True)
    save_file({name: tensor.to(torch.float16) for name, tensor in sorted(tensors.items())}, target)
    print(f"{target}: {sum(tensor.numel() for tensor in tensors.values()):,} parameters, {target.stat().st_size:,} bytes")


def main(arguments: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    runs = Path(arguments[0] if arguments else "runs/backbones")
    common = ["stage=sft", "run.log_every=50", "run.save_every=400"]
    make("language", ["recipe=demo_language", f"run.dir={runs / 'language'}", *common], LANGUAGE)
    make("vision", ["recipe=demo_vision", f"run.dir={runs / 'vision'}", f"model.language.weights={LANGUAGE}", *common], VISION)


if __name__ == "__main__":
    main(sys.argv[1:])
