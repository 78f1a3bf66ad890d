"""Generation against an engine whose answers are known: packing, stopping and sharing out must not change them."""

import itertools
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import LookupEngine, Meeting

from data_prep import tiny_data
from nvlm_train.config import schema
from nvlm_train.contracts import EncodedSample
from nvlm_train.data.encode import Encoder
from nvlm_train.data.packing import pack_row
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.errors import DataError
from nvlm_train.evaluation.generate import generate
from nvlm_train.generation.rows import tiles_read_next

TOKENIZER = load_tokenizer("tiny")
TILE = 8


def prompt(number, length, tiles=0):
    """A prompt whose first token says which it is."""
    tokens = np.full(length, 300, dtype=np.int64)
    tokens[0] = 400 + number
    return EncodedSample(f"p{number}", "test", tokens, np.zeros(length, np.float32),
                         np.zeros((tiles, 3, TILE, TILE), np.uint8), np.arange(tiles, dtype=np.int64))


PROMPTS = [prompt(n, length=5 + 3 * n, tiles=n % 3) for n in range(9)]


def script(tokens):
    """Prompt n is answered by n+1 tokens 500+n, 501+n, ..., then the end. An empty row (padding) may say anything."""
    number = tokens[0] - 400
    if number < 0:
        return 0
    written = len(tokens) - PROMPTS[number].length
    return 500 + number + written if written <= number else TOKENIZER.eos_id


EXPECTED = [[500 + n + k for k in range(n + 1)] for n in range(9)]


def encoder_of(row_tokens=64, row_tiles=4):
    """As much of an encoder as generation looks at."""
    return SimpleNamespace(tokenizer=TOKENIZER, geometry=SimpleNamespace(tile_size=TILE),
                           data=schema.Data(pack_tokens=row_tokens, pack_tiles=row_tiles))


def run(engine, max_new_tokens=20, **rows):
    return generate(engine, encoder_of(**rows), PROMPTS, max_new_tokens)


def test_every_prompt_gets_its_answer_up_to_the_end_token():
    assert run(LookupEngine(script)) == EXPECTED


def test_answers_are_cut_at_the_longest_allowed():
    assert run(LookupEngine(script), max_new_tokens=3) == [answer[:3] for answer in EXPECTED]


@pytest.mark.parametrize("row_tokens, row_tiles", [(49, 2), (64, 9), (1000, 9)])
def test_rows_of_prompts_keep_both_budgets_and_do_not_change_answers(row_tokens, row_tiles):
    engine = LookupEngine(script)
    assert run(engine, row_tokens=row_tokens, row_tiles=row_tiles) == EXPECTED
    assert sorted(key for row in engine.rows for key in row.keys) == [prompt.key for prompt in PROMPTS], "each is read once"
    assert max(len(row.tokens_T) for row in engine.rows) <= row_tokens
    assert max(len(row.tiles_nCPP) for row in engine.rows) <= row_tiles


def test_a_prompt_is_read_once_and_then_each_token_is_a_row_position():
    """Nine prompts in a wide row, and then one position for every answer that goes on; answer n has n + 1 tokens and its end."""
    engine = LookupEngine(script)
    run(engine, row_tokens=1000, row_tiles=20)
    assert [len(row.keys) for row in engine.rows] == [9] + [0] * 9
    assert [len(row.tokens_T) for row in engine.rows[1:]] == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    used = sum(prompt.length for prompt in PROMPTS)
    assert len(engine.rows[0].tokens_T) == -(-used // 64) * 64, "no longer than the prompts need"


def test_rows_of_tokens_are_filled_up_to_the_multiple_that_an_engine_wants():
    engine = LookupEngine(script)
    engine.token_multiple = 4
    assert run(engine, row_tokens=1000, row_tiles=20) == EXPECTED
    assert [len(row.tokens_T) for row in engine.rows[1:]] == [12, 8, 8, 8, 8, 4, 4, 4, 4]


@pytest.mark.parametrize("ranks", [2, 3])
def test_data_parallel_ranks_share_the_work_in_step(ranks):
    meeting = Meeting(ranks)
    engines = [LookupEngine(script, data_rank=rank, data_size=ranks, meeting=meeting) for rank in range(ranks)]
    answers = [None] * ranks

    def work(rank):
        answers[rank] = run(engines[rank])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [EXPECTED] * ranks
    assert len({len(engine.rows) for engine in engines}) == 1
    read = [[key for row in engine.rows for key in row.keys] for engine in engines]
    assert sorted(itertools.chain(*read)) == [prompt.key for prompt in PROMPTS] and min(map(len, read)) > 0


def test_ids_beyond_the_tokenizer_are_never_answered():
    engine = LookupEngine(lambda tokens: 1050)
    assert generate(engine, encoder_of(), PROMPTS[:1], 2) == [[0, 0]]


def test_no_prompts_and_no_call():
    engine = LookupEngine(script)
    assert generate(engine, encoder_of(), [], 5) == [] and engine.rows == []


def test_a_prompt_that_cannot_fit_is_refused_with_both_numbers_before_anything_runs():
    engine = LookupEngine(script)
    with pytest.raises(DataError, match="p8: 29 tokens and 2 tiles, with 20 new tokens.* 48 tokens"):
        run(engine, row_tokens=48)
    assert not engine.rows


@pytest.mark.parametrize("architecture", ["nvlm_x", "nvlm_h"])
def test_an_answer_reads_the_tiles_that_its_prompts_next_token_would(architecture):
    """`tiles_read_next` of packed prompts, against the prompt encoded with one more token and asked who reads what."""
    model = schema.Model(architecture, vision=schema.Vision(tile_size=32, patch=8))
    encoder = Encoder(model, schema.Data(max_tokens=300, pack_tokens=4000, pack_tiles=60), TOKENIZER)
    prompts = [encoder.encode_prompt(sample, reserve=4) for sample in list(tiny_data.samples("validation"))[::5]]
    tiles = [0 if prompt.memory is None else len(prompt.memory.seen_from_m) for prompt in prompts]
    assert 0 in tiles and max(tiles) > 1
    grown = [replace(prompt, tokens=np.append(prompt.tokens, 500), loss_weights=np.zeros(prompt.length + 1, np.float32))
             for prompt in prompts]
    row = pack_row(grown, 4000, TOKENIZER.pad_id, 32)
    expected = []
    for number, count in enumerate(tiles):
        last = int(row.cu_seqlens[number + 1]) - 1
        found = [entry[2:] for entry in row.reads_s4.tolist() if entry[0] <= last < entry[1]]
        assert [last - first for first, last in found] == ([count] if count else [])
        expected.append(tuple(found[0]) if found else None)
    found = tiles_read_next(prompts)
    assert [span if span[0] < span[1] else None for span in found] == expected
