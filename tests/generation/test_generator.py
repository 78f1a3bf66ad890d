"""The rounds of a generator, around an engine whose answers are known: joining, ending, cancelling, and what is reported."""

from types import SimpleNamespace

import numpy as np
import pytest

from nvlm_train.config import schema
from nvlm_train.contracts import EncodedSample
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.errors import DataError
from nvlm_train.generation.generator import Generator
from nvlm_train.generation.request import Request, Sampling
from tests.evaluation.fakes import LookupEngine

TOKENIZER = load_tokenizer("tiny")
TILE, LENGTH = 8, 10


def script(tokens):
    """Request n, which begins with token 400 + n, is answered by 500 + n as often as the second token says, then closed."""
    if len(tokens) < LENGTH:
        return 0
    return 100 + tokens[0] if len(tokens) - LENGTH < tokens[1] else TOKENIZER.eos_id


def request(number, answer, longest=50, tiles=0):
    tokens = np.full(LENGTH, 300, dtype=np.int64)
    tokens[:2] = 400 + number, answer
    prompt = EncodedSample(f"p{number}", "test", tokens, np.zeros(LENGTH, np.float32), np.zeros((tiles, 3, TILE, TILE), np.uint8),
                           np.arange(tiles, dtype=np.int64))
    return Request(f"r{number}", prompt, Sampling(longest))


def generator(slots=4, row_tokens=100, row_tiles=4):
    encoder = SimpleNamespace(tokenizer=TOKENIZER, geometry=SimpleNamespace(tile_size=TILE),
                              data=schema.Data(pack_tokens=row_tokens, pack_tiles=row_tiles))
    return Generator(LookupEngine(script), encoder, slots)


def told(news):
    return {one.id: (one.token, one.finish) for one in news}


def test_each_round_gives_every_running_request_one_token():
    made = generator()
    made.submit(request(1, 2))
    assert told(made.step()) == {"r1": (501, None)}
    made.submit(request(2, 0))
    made.submit(request(3, 5, longest=2))
    assert told(made.step()) == {"r1": (501, None), "r2": (None, "stop"), "r3": (503, None)}
    assert told(made.step()) == {"r1": (None, "stop"), "r3": (503, "length")}
    assert not made.busy and made.step() == []


def test_the_first_news_says_how_long_the_prompt_took_to_read():
    made = generator()
    made.submit(request(1, 2))
    assert [one.read_s is not None and one.read_s > 0 for one in (*made.step(), *made.step(), *made.step())] == [True, False, False]


def test_no_more_than_the_slots_run_and_the_others_wait_in_order():
    made = generator(slots=2)
    for number, answer in enumerate([3, 1, 1, 4, 1]):
        made.submit(request(number, answer))
    rounds = [sorted(told(made.step())) for _ in range(8)]
    assert rounds == [["r0", "r1"], ["r0", "r1"], ["r0", "r2"], ["r0", "r2"], ["r3", "r4"], ["r3", "r4"], ["r3"], ["r3"]]
    assert [sorted(told(made.step())) for _ in range(2)] == [["r3"], []]


def test_a_round_reads_one_row_of_prompts():
    """Four prompts of ten tokens, rows of 65: one with its longest answer of 50 fits, and no more than six prompts are read at once."""
    made = generator(slots=20, row_tokens=65)
    for number in range(8):
        made.submit(request(number, 9))
    assert len(made.step()) == 6 and len(made.step()) == 8
    assert [len(row.keys) for row in made.engine.rows] == [6, 2, 0]


def test_tiles_are_a_budget_too():
    made = generator(slots=20, row_tiles=4)
    for number in range(3):
        made.submit(request(number, 1, tiles=2))
    made.step()
    made.step()
    assert [len(row.keys) for row in made.engine.rows] == [2, 1, 0]


def test_who_is_cancelled_is_not_heard_of_again_and_leaves_room():
    made = generator(slots=2)
    for number in range(4):
        made.submit(request(number, 6))
    made.step()
    made.cancel("r0")
    made.cancel("r3")
    made.cancel("never there")
    assert sorted(told(made.step())) == ["r1", "r2"]
    made.cancel("r1")
    made.cancel("r2")
    assert not made.busy and made.step() == []


def test_answers_stay_with_their_requests_whatever_ends_and_joins():
    """A hundred requests of all lengths through seven slots; the engine checks at every step that a slot holds what it should."""
    made = generator(slots=7)
    random = np.random.default_rng(3)
    lengths = random.integers(0, 12, 100).tolist()
    answers: dict[str, list] = {f"r{number}": [] for number in range(100)}
    left, cancelled = list(range(100)), set()
    while made.busy or left:
        for number in (left.pop(0) for _ in range(min(len(left), random.integers(0, 4)))):
            made.submit(request(number, lengths[number]))
        for one in made.step():
            assert one.id not in cancelled
            answers[one.id] += [one.token, *([one.finish] if one.finish else [])]
        going_on = sorted(one for one in answers.keys() - cancelled if answers[one] and answers[one][-1] != "stop")
        if going_on and random.random() < 0.1:
            cancelled.add(going_on[0])
            made.cancel(going_on[0])
    assert len(cancelled) > 3
    for n in range(100):
        whole = [500 + n] * lengths[n] + [None, "stop"]
        found = answers[f"r{n}"]
        assert found == whole or (f"r{n}" in cancelled and found == whole[:len(found)])


def test_what_cannot_fit_is_refused_at_once():
    made = generator(row_tokens=40, row_tiles=1)
    with pytest.raises(DataError, match="p1: 10 tokens and 0 tiles, with 31 new tokens, do not fit a row of 40 tokens"):
        made.submit(request(1, 1, longest=31))
    with pytest.raises(DataError, match="2 tiles.* 1 tiles"):
        made.submit(request(1, 1, longest=5, tiles=2))
    assert not made.busy
