"""Generation against an engine whose answers are known: packing, stopping and sharing out must not change them."""

import threading

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


def run(engine, max_new_tokens=20, row_tokens=64, row_tiles=4):
    return generate(engine, TOKENIZER, PROMPTS, max_new_tokens, row_tokens, row_tiles, TILE)


def test_every_prompt_gets_its_answer_up_to_the_end_token():
    assert run(LookupEngine(script)) == EXPECTED


def test_answers_are_cut_at_the_longest_allowed():
    assert run(LookupEngine(script), max_new_tokens=3) == [answer[:3] for answer in EXPECTED]


@pytest.mark.parametrize("row_tokens, row_tiles", [(49, 2), (64, 9), (1000, 9)])
def test_rows_keep_both_budgets_and_do_not_change_answers(row_tokens, row_tiles):
    engine = LookupEngine(script)
    assert run(engine, row_tokens=row_tokens, row_tiles=row_tiles) == EXPECTED
    assert {len(row.tokens_T) for row in engine.rows} == {row_tokens}
    assert max(len(row.tiles_nCPP) for row in engine.rows) <= row_tiles


def test_one_wide_row_a_token_is_enough():
    engine = LookupEngine(script)
    run(engine, row_tokens=1000, row_tiles=20)
    assert [len(row.keys) for row in engine.rows] == [9, 9, 8, 7, 6, 5, 4, 3, 2, 1]


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
    asked = [sum(len(row.keys) for row in engine.rows) for engine in engines]
    assert sum(asked) == sum(len(answer) + 1 for answer in EXPECTED) and min(asked) > 0


def test_ids_beyond_the_tokenizer_are_never_answered():
    engine = LookupEngine(lambda tokens: 1050)
    assert generate(engine, TOKENIZER, PROMPTS[:1], 2, 64, 4, TILE) == [[0, 0]]


def test_no_prompts_and_no_call():
    engine = LookupEngine(script)
    assert generate(engine, TOKENIZER, [], 5, 64, 4, TILE) == [] and engine.rows == []


def test_a_prompt_that_cannot_fit_is_refused_with_both_numbers():
    with pytest.raises(DataError, match="p8: 29 tokens and 2 tiles, with 20 new tokens.* 48 tokens"):
        run(LookupEngine(script), row_tokens=48)


def reads_of(row, sample) -> list[list[int]]:
    """Who reads what in one sample of a row, its own tokens and memory tiles counted from 0."""
    start, end = row.cu_seqlens[sample:sample + 2].tolist()
    inside = [entry for entry in row.reads_s4.tolist() if start <= entry[0] < end]
    assert all(entry[1] <= end for entry in inside)
    base = min((entry[2] for entry in inside), default=0)
    return [[first - start, last - start, tile - base, after - base] for first, last, tile, after in inside]


@pytest.mark.parametrize("architecture", ["nvlm_x", "nvlm_h"])
def test_an_answer_keeps_reading_the_tiles_of_its_prompt(architecture):
    """Every written token reads what the prompt's last one does, and the row is that of the answer encoded as a sample."""
    model = schema.Model(architecture, vision=schema.Vision(tile_size=32, patch=8))
    encoder = Encoder(model, schema.Data(max_tokens=300, pack_tokens=700, pack_tiles=30), TOKENIZER)
    prompts = [encoder.encode_prompt(sample, reserve=4) for sample in list(tiny_data.samples("sft"))[:8]]
    engine = LookupEngine(lambda tokens: 500)
    assert generate(engine, TOKENIZER, prompts, 4, 700, 30, 32) == [[500] * 4] * 8

    by_key = {prompt.key: prompt for prompt in prompts}
    lengths, with_memory = {key: set() for key in by_key}, 0
    for row in engine.rows:
        assert int((row.tile_starts_n < 0).sum()) == len(row.memory_tags_mG)
        for number, key in enumerate(row.keys):
            length = int(row.cu_seqlens[number + 1] - row.cu_seqlens[number])
            lengths[key].add(length - by_key[key].length)
            m = 0 if by_key[key].memory is None else len(by_key[key].memory.seen_from_m)
            alone = reads_of(pack_row([by_key[key]], 700, TOKENIZER.pad_id, 32), 0)
            expected = [*alone[:-1], [alone[-1][0], length, 0, m]] if m else []
            assert reads_of(row, number) == expected
            with_memory += m > 0
    assert set(map(frozenset, lengths.values())) == {frozenset(range(4))} and with_memory >= 16
