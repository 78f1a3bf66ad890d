"""Run under torchrun by test_smollm2.py: SmolLM2's greedy answers on one layout.

    smollm2_ranks.py OUT.json WEIGHTS NEW LAYOUT_WORD…
"""

import json
import sys
from pathlib import Path

import torch

from nvlm_train.config.compose import compose
from nvlm_train.contracts import Sample, Turn
from nvlm_train.evaluation.generate import generate
from nvlm_train.evaluation.opening import open_model

QUESTIONS = ("What is the capital of France?", "Write a haiku about the sea.", "def fibonacci(n):", "Why is the sky blue?")


def main(out: str, weights: str, new: str, *layout: str) -> None:
    runs = compose(["recipe=nvlm_d_smol", "stage=sft", "run.device=cpu", f"model.tokenizer={weights}/tokenizer.json", *layout])
    model = open_model(runs, weights)
    samples = [Sample("q", "q", (), (Turn("user", question), Turn("assistant", ""))) for question in QUESTIONS]
    prompts = [model.encoder.encode_prompt(sample, reserve=int(new)) for sample in samples]
    answers = generate(model.engine, model.encoder, prompts, int(new))
    model.engine.close()
    if torch.distributed.get_rank() == 0:
        Path(out).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
