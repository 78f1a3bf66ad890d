"""An engine without a model: the next token is a lookup, so that what generation must do is known beforehand."""

import threading

import torch

from nvlm_train.contracts import PackedBatch


class LookupEngine:
    """Answers a prompt by the script of its text so far: `script(tokens of the segment) -> next token`.

    As one of several data-parallel ranks it must be called by as many threads; collectives wait for all of them.
    """

    def __init__(self, script, vocabulary=1100, data_rank=0, data_size=1, meeting=None):
        self.script, self.vocabulary = script, vocabulary
        self.data_rank, self.data_size, self.is_main = data_rank, data_size, data_rank == 0
        self.rows: list[PackedBatch] = []
        self._meeting = meeting

    def logits(self, row, at):
        self.rows.append(row)
        out = torch.zeros(len(at), self.vocabulary)
        starts = row.cu_seqlens.tolist()
        for k, position in enumerate(at.tolist()):
            start = max(edge for edge in starts if edge <= position)
            out[k, self.script(row.tokens_T[start:position + 1].tolist())] = 1.0
        return out

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
