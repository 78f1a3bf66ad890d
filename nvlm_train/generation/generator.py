"""Answers many requests at once. A round gives each running request one token; those that wait join as others end.

A prompt is read once, in a row with others as in training; from then on a token costs one token's work (`model.cache`). A round reads
at most one row of prompts, so that those who are being answered never wait for more than that.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from nvlm_train.data.encode import Encoder
from nvlm_train.engine.interface import Engine
from nvlm_train.errors import DataError
from nvlm_train.generation.request import LENGTH, STOP, News, Request
from nvlm_train.generation.rows import prompt_row, tiles_read_next, token_row
from nvlm_train.generation.sampling import Choice, choose
from nvlm_train.model.cache import Cache, CacheRow, NewTokens, Prompts


@dataclass
class _Running:
    request: Request
    choice: Choice
    answer: list[int] = field(default_factory=list)

    @property
    def held(self) -> int:
        """Tokens that the cache holds: all but the last chosen."""
        return self.request.prompt.length + len(self.answer) - 1


class Generator:
    """Every rank of a model replica holds one and makes the same calls with the same requests. With several replicas each answers
    requests of its own, and all take part in every round: `step` is a collective then.

    slots: requests that run at a time; the others wait, first come, first served.
    """

    def __init__(self, engine: Engine, encoder: Encoder, slots: int):
        self.engine, self.encoder, self.slots = engine, encoder, slots
        self._waiting: deque[Request] = deque()
        self._running: list[_Running] = []      # by slot
        self._cache: Cache | None = None
        self._room = 0

    @property
    def busy(self) -> bool:
        """Whether a request of this replica runs or waits."""
        return bool(self._running or self._waiting)

    def goes_on(self) -> bool:
        """Whether another round is needed, of this replica or of another. A collective where there are several."""
        return self._anywhere(self.busy)

    def submit(self, request: Request) -> None:
        """Take a request. Raises DataError as `check`."""
        self.check(request)
        self._waiting.append(request)

    def check(self, request: Request) -> None:
        """Raises DataError if a request's prompt and its longest answer do not fit."""
        data, prompt, longest = self.encoder.data, request.prompt, request.sampling.max_new_tokens
        if prompt.length + longest > data.pack_tokens or len(prompt.tiles) > data.pack_tiles:
            raise DataError(
                f"{prompt.key}: {prompt.length:,} tokens and {len(prompt.tiles)} tiles, with {longest} new tokens, do not fit a row of "
                f"{data.pack_tokens:,} tokens (data.pack_tokens) and {data.pack_tiles} tiles (data.pack_tiles): raise these, or ask for "
                "fewer new tokens")

    def cancel(self, id: str) -> None:
        """Drop a request, if it is still there; nothing more is reported of it."""
        self._waiting = deque(request for request in self._waiting if request.id != id)
        self._drop([slot for slot, running in enumerate(self._running) if running.request.id == id])

    def step(self) -> list[News]:
        """One round. News of every request that took part, each with one token."""
        began = time.monotonic()
        going_on = len(self._running)
        joining = self._joining()
        news: list[News] = []
        if self._anywhere(bool(joining)):
            self._read(joining)
            read_s = time.monotonic() - began
            news += [self._news(running, read_s) for running in self._running[going_on:]]
        if self._anywhere(going_on > 0):
            self._continue(going_on)
            news += [self._news(running, None) for running in self._running[:going_on]]
        ended = {one.id for one in news if one.finish}
        self._drop([slot for slot, running in enumerate(self._running) if running.request.id in ended])
        return news

    def _anywhere(self, wanted: bool) -> bool:
        """All replicas call the engine equally often: some engines let none go ahead of the others."""
        return wanted if self.engine.data_size == 1 else self.engine.any_rank(wanted)

    def _joining(self) -> list[Request]:
        """The next that wait, as many as have a slot and fit one row."""
        joining, tokens, tiles = [], self.encoder.data.pack_tokens, self.encoder.data.pack_tiles
        while self._waiting and len(self._running) + len(joining) < self.slots:
            prompt = self._waiting[0].prompt
            tokens, tiles = tokens - prompt.length, tiles - len(prompt.tiles)
            if tokens < 0 or tiles < 0:
                break
            joining.append(self._waiting.popleft())
        return joining

    def _read(self, joining: Sequence[Request]) -> None:
        """Read prompts, and choose each answer's first token."""
        if self._cache is None:
            self._cache = Cache(self.slots)
        first, prompts = len(self._running), [request.prompt for request in joining]
        self._room = max([self._room, *(request.prompt.length + request.sampling.max_new_tokens for request in joining)])
        self._running += [_Running(request, Choice(request.sampling)) for request in joining]
        row = prompt_row(prompts, self.encoder.tokenizer.pad_id, self.encoder.geometry.tile_size, self.engine.token_multiple,
                         self.encoder.data.pack_tokens)
        ends = row.cu_seqlens[1:len(prompts) + 1].long() - 1
        held = Prompts(self._cache, range(first, len(self._running)), self._room, tiles_read_next(prompts))
        self._choose(self._running[first:], row, ends, held)

    def _continue(self, count: int) -> None:
        """Choose the next token of the answers in the first slots."""
        running = self._running[:count]
        lengths = [one.held for one in running]
        row = token_row([one.answer[-1] for one in running], lengths, self.encoder.tokenizer.pad_id,
                        self.encoder.geometry.tile_size, self.engine.token_multiple)
        self._choose(running, row, torch.arange(count), NewTokens(self._cache or Cache(self.slots), lengths))

    def _choose(self, running: Sequence[_Running], row, at: torch.Tensor, held: CacheRow) -> None:
        """One engine call. A replica that has nothing to do makes it with a row of padding."""
        logits_KV = self.engine.logits(row, at if len(at) else torch.zeros(1, dtype=torch.long), held)[:len(running)]
        # Rows of the embedding beyond the tokenizer's vocabulary stand for nothing, so they cannot be answered.
        chosen = choose(logits_KV[:, :self.encoder.tokenizer.vocab_size], [one.choice for one in running])
        for one, token in zip(running, chosen, strict=True):
            one.answer.append(token)

    def _news(self, running: _Running, read_s: float | None) -> News:
        token, request = running.answer[-1], running.request
        closed = token == self.encoder.tokenizer.eos_id
        finish = STOP if closed else LENGTH if len(running.answer) == request.sampling.max_new_tokens else None
        return News(request.id, None if closed else token, finish, read_s)

    def _drop(self, slots: Sequence[int]) -> None:
        """Free slots; the last running requests move into them, so that new tokens stay side by side."""
        for slot in sorted(slots, reverse=True):
            last = len(self._running) - 1
            self._cache.move(last, slot)
            self._running[slot] = self._running[last]
            self._running.pop()
        if not self._running:       # what it took is wanted elsewhere, when the model is in training
            self._cache, self._room = None, 0
