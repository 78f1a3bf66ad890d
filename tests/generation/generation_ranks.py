"""Run under torchrun by test_cached.py: what models of small real architectures write, cached and not, under several layouts.

    generation_ranks.py OUT.json ARCHITECTURE[;…] LAYOUT[;…]

LAYOUT: a name of LAYOUTS that fits the number of ranks.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data_prep import tiny_data
from nvlm_train.config.compose import compose
from nvlm_train.contracts import EncodedSample
from nvlm_train.data.encode import Encoder
from nvlm_train.data.packing import pack_row
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.engine.interface import Engine
from nvlm_train.evaluation.generate import generate
from nvlm_train.generation.generator import Generator
from nvlm_train.generation.request import Request, Sampling
from nvlm_train.training.stages import build_engine

LAYOUTS = {
    "one": [], "data 2": [], "tensor 2": ["layout.tensor=2"], "tensor 2, sequence": ["layout.tensor=2", "layout.sequence=true"],
    "pipeline 2": ["layout.pipeline=2"], "pipeline 2, virtual 2": ["layout.pipeline=2", "layout.virtual=2"],
    "context 2": ["layout.context=2"], "zero 3": ["engine=deepspeed", "engine.zero=3"],
}
# Gates wide open and large weights: tokens depend on pictures, and the likeliest leads by far more than rounding.
SETTINGS = ("stage=sft", "model.init_std=0.2", "run.device=cpu", "data.pack_tokens=704", "data.max_tokens=600")
OPEN = ("model.cross_attention.gate_init=1.0",)
NEW = 12


def prompts_of(encoder: Encoder) -> list[EncodedSample]:
    """Text alone, one picture, several; of very different lengths."""
    samples = list(tiny_data.samples("validation"))[::7] + list(tiny_data.samples("sft"))[::40]
    return [encoder.encode_prompt(sample, reserve=NEW) for sample in samples]


def uncached(engine: Engine, encoder: Encoder, prompt: EncodedSample) -> tuple[list[int], float]:
    """(greedy answer in a row of its own, which is run anew for every token; how far its tokens led at the least)."""
    written, lead = [], float("inf")
    for _ in range(NEW):
        tokens = np.concatenate([prompt.tokens, np.asarray(written, dtype=np.int64)])
        text = replace(prompt, tokens=tokens, loss_weights=np.zeros(len(tokens), np.float32))
        row = pack_row([text], encoder.data.pack_tokens, encoder.tokenizer.pad_id, encoder.geometry.tile_size)
        logits = engine.logits(row, row.cu_seqlens[1:2].long() - 1)[0, :encoder.tokenizer.vocab_size]
        lead = min(lead, float(-logits.topk(2).values.diff()))
        if (token := int(logits.argmax())) == encoder.tokenizer.eos_id:
            break
        written.append(token)
    return written, lead


def drawn(engine: Engine, encoder: Encoder, prompts: list[EncodedSample]) -> list[list[int]]:
    """Answers with temperature, each with a seed of its own, through three slots."""
    generator = Generator(engine, encoder, slots=3)
    for number, prompt in enumerate(prompts):
        generator.submit(Request(str(number), prompt, Sampling(NEW, temperature=0.8, top_p=0.9, seed=number)))
    answers: list[list[int]] = [[] for _ in prompts]
    while generator.busy:
        for one in generator.step():
            answers[int(one.id)] += [] if one.token is None else [one.token]
    return answers


def facts(architecture: str, layout: str) -> dict:
    opened = OPEN if architecture != "nvlm_d" else ()
    [run] = compose([f"recipe={architecture}_tiny", *SETTINGS, *opened, *LAYOUTS[layout]])
    engine = build_engine(run)
    encoder = Encoder(run.model, run.data, load_tokenizer(run.model.tokenizer))
    prompts = prompts_of(encoder)
    found = {"greedy": generate(engine, encoder, prompts, NEW), "prompts": [prompt.length for prompt in prompts]}
    if engine.data_size == 1:
        found["drawn"] = drawn(engine, encoder, prompts)
    if layout == "one":
        found["uncached"], found["lead"] = map(list, zip(*(uncached(engine, encoder, prompt) for prompt in prompts), strict=True))
        found["black"] = generate(engine, encoder, [replace(prompt, tiles=np.zeros_like(prompt.tiles)) for prompt in prompts], NEW)
        found["tiles"] = [len(prompt.tiles) for prompt in prompts]
    engine.close()
    return found


def main(out: str, architectures: str, layouts: str) -> None:
    found = {architecture: {layout: facts(architecture, layout) for layout in layouts.split(";")}
             for architecture in architectures.split(";")}
    if int(torch.distributed.get_rank()) == 0:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
