"""Which token comes next: the likeliest, or one drawn by temperature and top-p."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from nvlm_train.generation.request import Sampling


class Choice:
    """Chooses the tokens of one answer. Draws depend on the seed and the answer's own logits, on nothing that runs beside."""

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self._random = random.Random(sampling.seed)

    def draw(self) -> float:
        """The next number in [0, 1) that decides."""
        return self._random.random()


def choose(logits_KV: Tensor, choices: Sequence[Choice]) -> list[int]:
    """One token for each row of float32 logits. Waits for the device once."""
    if not choices:
        return []
    best = logits_KV.argmax(-1)
    drawn = [k for k, choice in enumerate(choices) if choice.sampling.temperature > 0]
    if drawn:
        at = torch.tensor(drawn, device=logits_KV.device)
        best[at] = _drawn(logits_KV[at], [choices[k] for k in drawn])
    return best.tolist()


def _drawn(logits_KV: Tensor, choices: Sequence[Choice]) -> Tensor:
    """Of each row's likeliest tokens, as many as it takes to reach top_p, one by its probability among these."""
    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits_KV.device)[:, None]

    temperature = column([choice.sampling.temperature for choice in choices])
    top_p = column([choice.sampling.top_p for choice in choices])
    # The highest logit is taken off first, so that the smallest temperature cannot overflow. Equal logits stay in the order of their
    # ids, as for the likeliest.
    scaled = (logits_KV - logits_KV.amax(-1, keepdim=True)).double() / temperature
    ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    up_to = probabilities.cumsum(-1)
    kept = (up_to - probabilities < top_p).sum(-1, keepdim=True)        # always the first; a token that crosses top_p is in
    total = up_to.gather(-1, kept - 1)
    place = torch.searchsorted(up_to, column([choice.draw() for choice in choices]) * total, right=True)
    return ids.gather(-1, place.clamp(max=kept - 1))[:, 0]
