"""An engine without a model: the next token is a lookup, so that what generation must do is known beforehand."""

import itertools
import threading

import torch

from nvlm_train.contracts import PackedBatch


class LookupEngine:
    """Answers a prompt by the script of its text so far: `script(tokens of the segment) -> next token`.

    Keeps the text of each slot of a cache as a model keeps keys and values, and insists on what a model relies on. As one of several
    data-parallel ranks it must be called by as many threads; collectives wait for all of them.
    """

    token_multiple = 1

    def __init__(self, script, vocabulary=1100, data_rank=0, data_size=1, meeting=None):
        self.script, self.vocabulary = script, vocabulary
        self.data_rank, self.data_size, self.is_main = data_rank, data_size, data_rank == 0
        self.rows: list[PackedBatch] = []
        self._meeting = meeting

    def logits(self, row, at, held=None):
        self.rows.append(row)
        texts = _new_tokens(row, held) if held is not None and held.decoding else _whole_texts(row, held)
        out = torch.zeros(len(at), self.vocabulary)
        for k, position in enumerate(at.tolist()):
            out[k, self.script(texts[position])] = 1.0
        return out

    def any_rank(self, flag):
        return any(self.gather_objects(flag))

    def gather_objects(self, value):
        if self._meeting is None:
            return [value]
        return self._meeting.gather(self.data_rank, value)

    def barrier(self):
        self.gather_objects(None)


class Meeting:
    """`gather_objects` of several engines in threads of one process."""

    def __init__(self, size):
        self._values, self._barrier = [None] * size, threading.Barrier(size, timeout=30)

    def gather(self, rank, value):
        self._values[rank] = value
        self._barrier.wait()
        found = list(self._values)
        self._barrier.wait()
        return found



def _whole_texts(row, held):
    """Row position -> text up to there. A cache keeps the first segments' texts: in the list that its moves take along."""
    texts = {}
    for number, (start, end) in enumerate(itertools.pairwise(row.cu_seqlens.tolist())):
        segment = row.tokens_T[start:end].tolist()
        texts |= {start + n: segment[:n + 1] for n in range(len(segment))}
        if held is not None and number < len(held.slots):
            assert len(held.slots) == len(held.tiles) and len(segment) < held.room
            held.cache.memory_tokens[held.slots[number]] = segment
    return texts


def _new_tokens(row, held):
    """Slot, which is the position in the row -> its text with the new token."""
    slots = held.cache.memory_tokens
    assert row.positions_T[:len(held.lengths)].tolist() == list(held.lengths) == [len(slots[n]) for n in range(len(held.lengths))]
    for slot, token in enumerate(row.tokens_T[:len(held.lengths)].tolist()):
        slots[slot] = [*slots[slot], token]
    return {slot: slots[slot] for slot in range(len(held.lengths))} or {0: [0]}
