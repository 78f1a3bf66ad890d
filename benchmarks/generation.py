"""How fast answers are written, beside what the machine allows and what others do: tokens a second of random prompts.

    python -m benchmarks.generation WEIGHTS recipe=nvlm_d_smol model.tokenizer=WEIGHTS [--transformers FOLDER]

WEIGHTS: a checkpoint or a folder that `nvlm import` made; FOLDER: the same language model for transformers (`nvlm export part=language`).

"cached" is the generator that eval, serve and chat use. "anew" runs the whole row for every token, as without a KV cache. "floor": each
token of a round needs all the language model's weights once, read from memory and multiplied; both rates are measured first, by the sum
of a large tensor and by a product of large matrices. "read" is the time until a prompt's first token.
"""

import argparse
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks.results import tell
from benchmarks.timing import fastest, seconds
from nvlm_train.config.compose import compose
from nvlm_train.contracts import EncodedSample
from nvlm_train.data.encode import Encoder
from nvlm_train.data.packing import pack_row
from nvlm_train.evaluation.opening import Model, open_model
from nvlm_train.generation.generator import Generator
from nvlm_train.generation.request import Request, Sampling

ANEW = 4        # tokens that are enough to time a row that is run anew for each
TIMES = 3       # that a rate is measured
SIDE = 4096     # of the matrices whose product is timed


def rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(bytes a second of reading, floating-point operations a second of a large product)."""
    side = SIDE if device.type == "cuda" else SIDE // 4
    large = torch.ones(1 << 28 if device.type == "cuda" else 1 << 26, dtype=dtype, device=device)
    square = torch.randn(side, side, dtype=dtype, device=device)
    read = large.nbytes / fastest(lambda: large.sum(dtype=dtype), TIMES)
    return read, 2 * side**3 / fastest(lambda: square @ square, TIMES)


def prompts(count: int, length: int, vocab: int, tile_size: int) -> list[EncodedSample]:
    """Text of random tokens, without tiles (of tile_size pixels)."""
    random = np.random.default_rng(1)
    return [EncodedSample(str(number), "random", random.integers(100, vocab - 100, length), np.zeros(length, np.float32),
                          np.empty((0, 3, tile_size, tile_size), np.uint8), np.empty(0, np.int64)) for number in range(count)]


def endless(model: Model) -> Encoder:
    """As much of the encoder as generation looks at, of a tokenizer without an end."""
    tokenizer = model.encoder.tokenizer
    return SimpleNamespace(tokenizer=SimpleNamespace(vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id, eos_id=-1),
                           data=model.encoder.data, geometry=model.encoder.geometry)


def cached(model: Model, asked: list[EncodedSample], new: int) -> tuple[float, float]:
    """(seconds until all have their first token, seconds of a round after that)."""
    took, answered = [], []
    generator = Generator(model.engine, endless(model), slots=len(asked))
    for prompt in asked:
        generator.submit(Request(prompt.key, prompt, Sampling(new)))
    while generator.busy:
        took.append(seconds(lambda: answered.append(len(generator.step()))))
    reading = len(took) - new + 1
    assert answered[-1] == len(asked) or reading > 1
    return sum(took[:reading]), float(np.median(took[reading:]))


def anew(model: Model, asked: list[EncodedSample]) -> float:
    """Seconds of a token of every prompt where rows are run again for each."""
    encoder, data = endless(model), model.encoder.data
    fit = max(1, data.pack_tokens // asked[0].length)
    rows = [pack_row(asked[at:at + fit], sum(one.length for one in asked[at:at + fit]), encoder.tokenizer.pad_id, encoder.geometry.tile_size)
            for at in range(0, len(asked), fit)]

    def act() -> None:
        for row in rows:
            model.engine.logits(row, row.cu_seqlens[1:].long() - 1)

    return fastest(act, ANEW)


def theirs(folder: str, asked: list[EncodedSample], new: int, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """As `cached`, of transformers' `generate` with the same prompts as a batch."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    tokens = torch.from_numpy(np.stack([prompt.tokens for prompt in asked])).to(device)

    def act(count: int) -> float:
        return fastest(lambda: model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count,
                                              min_new_tokens=count, do_sample=False, pad_token_id=0), 2)

    read = act(1)
    return read, (act(new) - read) / (new - 1)


def weight_bytes(model: Model) -> tuple[int, int]:
    """(bytes, numbers) of the language model that each new token needs; an embedding is looked up, unless it is the output too."""
    lm, stage = model.run.model.language, model.engine.stages()[0].language
    numbers = sum(param.numel() for param in stage.parameters()) - (0 if lm.tie_embeddings else stage.embedding.weight.numel())
    return numbers * next(stage.parameters()).element_size(), numbers


def measure(model: Model, batches: list[int], length: int, new: int, folder: str | None) -> list[dict]:
    device, dtype = model.engine.device, model.engine.dtype
    reading, multiplying = rates(device, dtype)
    size, numbers = weight_bytes(model)
    found = []
    for batch in batches:
        asked = prompts(batch, length, model.encoder.tokenizer.vocab_size, model.encoder.geometry.tile_size)
        cached(model, asked[:1], 3)     # whatever is done once
        read_s, round_s = cached(model, asked, new)
        floor_s = max(size / reading, 2 * numbers * batch / multiplying)
        row = {"batch": batch, "read_s": read_s, "round_ms": 1e3 * round_s, "tokens_s": batch / round_s, "floor_ms": 1e3 * floor_s,
               "of_floor": floor_s / round_s, "anew_ms": 1e3 * anew(model, asked)}
        if folder:
            their_read, their_round = theirs(folder, asked, new, device, dtype)
            row |= {"transformers_read_s": their_read, "transformers_ms": 1e3 * their_round}
        found.append(row)
        print("  ".join(f"{name} {value:,.4g}" for name, value in row.items()), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("settings", nargs="+", help="recipe=… and others")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--new", type=int, default=32, help="tokens")
    parser.add_argument("--transformers", metavar="FOLDER")
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    asked = parser.parse_args()
    runs = compose(["stage=sft", *asked.settings])
    longest = asked.prompt + asked.new
    runs = [replace(run, data=replace(run.data, pack_tokens=max(run.data.pack_tokens, longest))) for run in runs]
    model = open_model(runs, asked.weights)
    batches = [int(batch) for batch in asked.batches.split(",")]
    tell({"rounds": measure(model, batches, asked.prompt, asked.new, asked.transformers)}, asked.json)
    model.engine.close()


if __name__ == "__main__":
    main()
