"""Losses of given answers against sums made by hand; sharing out rows over ranks changes nothing."""

import threading

import pytest
import torch
from fakes import Meeting
from test_tasks import ENCODER, TOKENIZER, question

from benchmarks.likelihood import losses
from nvlm_train.contracts import Sample, Turn
from nvlm_train.errors import SampleRefused


class Steps:
    """An engine whose logits follow from position and token alone, so that a loss can be said without it."""

    def __init__(self, data_rank=0, data_size=1, meeting=None):
        self.data_rank, self.data_size, self._meeting, self.calls = data_rank, data_size, meeting, 0

    def logits(self, row, at):
        self.calls += 1
        return torch.stack([logits_after(int(row.tokens_T[position])) for position in at])

    def gather_objects(self, value):
        return self._meeting.gather(self.data_rank, value) if self._meeting else [value]


def logits_after(token):
    return torch.linspace(0, (token % 7) / 2, 1100)


def text(number, answer):
    return Sample(f"t{number}", "quiz", (), (Turn("user", f"Number {number}?"), Turn("assistant", answer)))


SAMPLES = [text(0, "five"), question(1, "yes"), text(2, "a longer answer of several words"), text(3, "no")]


def by_hand(sample):
    encoded = ENCODER.encode(sample)
    places = [i for i in range(encoded.length - 1) if encoded.loss_weights[i + 1] > 0]
    nats = [-torch.log_softmax(logits_after(int(encoded.tokens[i])), 0)[int(encoded.tokens[i + 1])] for i in places]
    return float(sum(nats)), len(nats)


def test_the_loss_is_that_of_the_answers_tokens():
    found = losses(Steps(), ENCODER, SAMPLES)
    for sample, loss in zip(SAMPLES, found, strict=True):
        total, tokens = by_hand(sample)
        assert loss.tokens == tokens and loss.total == pytest.approx(total, rel=1e-5)
        assert loss.mean == pytest.approx(total / tokens, rel=1e-5)
    assert found[3].tokens == len(TOKENIZER.encode("no")) + 2, "the answer, the token that ends it, and the line's end, all learned"


def test_ranks_share_the_rows_and_hear_everything():
    meeting, found = Meeting(3), {}
    engines = [Steps(rank, 3, meeting) for rank in range(3)]
    threads = [threading.Thread(target=lambda engine=engine: found.update({engine.data_rank: losses(engine, ENCODER, SAMPLES)}))
               for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found[0] == found[1] == found[2] == losses(Steps(), ENCODER, SAMPLES)
    assert len({engine.calls for engine in engines}) == 1, "ranks that call equally often stay in step"


def test_what_cannot_be_encoded_is_refused():
    with pytest.raises(SampleRefused, match="too_long"):
        losses(Steps(), ENCODER, [text(0, "word " * 500)])
