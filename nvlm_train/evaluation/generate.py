"""Greedy generation on any engine and layout.

Prompts are packed into rows as in training, and a row is run again for every new token: answers here are a few tokens long, and
this needs nothing of the model but its logits. Every rank holds all prompts and makes the same number of calls, so pipeline and
tensor parallel ranks stay in step, and data-parallel ranks share the work.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from nvlm_train.contracts import EncodedSample
from nvlm_train.data.packing import Cost, assign, pack_row
from nvlm_train.data.tokenizer import Tokenizer
from nvlm_train.engine.interface import Engine
from nvlm_train.errors import DataError


def generate(engine: Engine, tokenizer: Tokenizer, prompts: Sequence[EncodedSample], max_new_tokens: int,
             row_tokens: int, row_tiles: int, tile_size: int) -> list[list[int]]:
    """The greedy continuation of every prompt, without the token that closes it; the same lists on every rank.

    prompts: the same on every rank (`Encoder.encode_prompt`). row_tokens, row_tiles: budgets of a row (`data.pack_tokens`,
    `data.pack_tiles`). tile_size: pixels. Raises DataError if a prompt and its longest answer do not fit a row.
    """
    for prompt in prompts:
        if prompt.length + max_new_tokens > row_tokens or len(prompt.tiles) > row_tiles:
            raise DataError(
                f"{prompt.key}: {prompt.length:,} tokens and {len(prompt.tiles)} tiles, with {max_new_tokens} new tokens, do not fit "
                f"a row of {row_tokens:,} tokens (data.pack_tokens) and {row_tiles} tiles (data.pack_tiles): raise these, or lower "
                "eval.max_new_tokens")
    answers: list[list[int]] = [[] for _ in prompts]
    growing = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        if not growing:
            break
        texts = [_continued(prompts[i], answers[i]) for i in growing]
        chosen = _next_tokens(engine, tokenizer, texts, row_tokens, row_tiles, tile_size)
        still = []
        for i, token in zip(growing, chosen, strict=True):
            if token != tokenizer.eos_id:
                answers[i].append(token)
                still.append(i)
        growing = still
    return answers


def _continued(prompt: EncodedSample, answer: list[int]) -> EncodedSample:
    """The prompt with what has been written so far."""
    if not answer:
        return prompt
    tokens = np.concatenate([prompt.tokens, np.asarray(answer, dtype=np.int64)])
    return replace(prompt, tokens=tokens, loss_weights=np.zeros(len(tokens), dtype=np.float32))


def _next_tokens(engine: Engine, tokenizer: Tokenizer, texts: Sequence[EncodedSample],
                 row_tokens: int, row_tiles: int, tile_size: int) -> list[int]:
    """The likeliest next token of every text. One engine call a row; every data-parallel rank has equally many rows."""
    costs = [Cost(text.length, len(text.tiles)) for text in texts]
    mine = {}
    for row in assign(costs, row_tokens, row_tiles, engine.data_size)[engine.data_rank]:
        batch = pack_row([texts[i] for i in row], row_tokens, tokenizer.pad_id, tile_size)
        ends = batch.cu_seqlens[1:len(row) + 1].long() - 1
        logits_KV = engine.logits(batch, ends if row else torch.zeros(1, dtype=torch.long))
        # Rows of the embedding beyond the tokenizer's vocabulary stand for nothing, so they cannot be answered.
        best_K = logits_KV[:, :tokenizer.vocab_size].argmax(-1).tolist()
        mine.update(zip(row, best_K, strict=False))   # an empty row has one answer too many
    chosen: dict[int, int] = {}
    for part in engine.gather_objects(mine):
        chosen.update(part)
    return [chosen[i] for i in range(len(texts))]
