"""The greedy answers to many prompts, on any engine and layout."""

from collections.abc import Sequence

from nvlm_train.contracts import EncodedSample
from nvlm_train.data.encode import Encoder
from nvlm_train.data.packing import Cost, deal
from nvlm_train.engine.interface import Engine
from nvlm_train.generation.generator import Generator
from nvlm_train.generation.request import Request, Sampling

SLOTS = 32      # prompts at a time on each replica


def generate(engine: Engine, encoder: Encoder, prompts: Sequence[EncodedSample], max_new_tokens: int) -> list[list[int]]:
    """The greedy continuation of every prompt, without the token that closes it; the same lists on every rank.

    prompts: the same on every rank (`Encoder.encode_prompt`). Data-parallel replicas share them out. A collective. Raises DataError if
    a prompt and its longest answer do not fit a row.
    """
    sampling = Sampling(max_new_tokens)
    generator = Generator(engine, encoder, SLOTS)
    for number, prompt in enumerate(prompts):
        generator.check(Request(str(number), prompt, sampling))
    costs = [Cost(prompt.length, len(prompt.tiles)) for prompt in prompts]
    mine = [i for [i] in filter(None, deal([[i] for i in range(len(prompts))], costs, engine.data_size)[engine.data_rank])]
    # Long prompts first: those that are left in the end, when slots stay empty, are quickly read.
    for i in sorted(mine, key=lambda i: -costs[i].work):
        generator.submit(Request(str(i), prompts[i], sampling))
    answers: dict[int, list[int]] = {i: [] for i in mine}
    while generator.goes_on():
        for news in generator.step():
            if news.token is not None:
                answers[int(news.id)].append(news.token)
    everyones: dict[int, list[int]] = {}
    for part in engine.gather_objects(answers):
        everyones.update(part)
    return [everyones[i] for i in range(len(prompts))]
