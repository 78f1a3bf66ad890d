"""Generation on the real engine: packing prompts into a row does not change what is written."""

from dataclasses import replace

import numpy as np
import pytest

from data_prep import tiny_data
from nvlm_train.config.compose import compose
from nvlm_train.data.encode import Encoder
from nvlm_train.data.packing import pack_row
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.evaluation.generate import generate
from nvlm_train.training.stages import build_engine

NEW = 3


@pytest.fixture(scope="module")
def model():
    [run] = compose(["recipe=nvlm_d_tiny", "stage=sft", "model.init_std=0.2", "run.device=cpu"])
    engine = build_engine(run)
    yield engine, Encoder(run.model, run.data, load_tokenizer("tiny"))
    engine.close()


def alone(engine, encoder, prompt):
    """Greedy continuation of one prompt in a row of its own, spelled out token by token."""
    written = []
    for _ in range(NEW):
        row = pack_row([_with(prompt, written)], encoder.data.pack_tokens, encoder.tokenizer.pad_id, encoder.geometry.tile_size)
        token = int(engine.logits(row, row.cu_seqlens[1:2].long() - 1)[0].argmax())
        if token == encoder.tokenizer.eos_id:
            break
        written.append(token)
    return written


def _with(prompt, written):
    tokens = np.concatenate([prompt.tokens, np.asarray(written, dtype=np.int64)])
    return replace(prompt, tokens=tokens, loss_weights=np.zeros(len(tokens), np.float32))


def test_packed_prompts_are_answered_as_if_alone(model):
    engine, encoder = model
    samples = list(tiny_data.samples("validation"))[:9]
    prompts = [encoder.encode_prompt(sample, reserve=NEW) for sample in samples]
    data = encoder.data
    together = generate(engine, encoder.tokenizer, prompts, NEW, data.pack_tokens, data.pack_tiles, encoder.geometry.tile_size)
    assert together == [alone(engine, encoder, prompt) for prompt in prompts]
    assert len({tuple(answer) for answer in together}) > 1, "all prompts were answered alike: the test would not notice a mix-up"
