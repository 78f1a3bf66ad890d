"""Attention of every part of a row in one process: what the ranks of a group would send each other is put together here."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nvlm_train.model.context import Context, Share
from nvlm_train.model.context_attention import Split, split_attention


def shares(edges: Sequence[int], ranks: int) -> list[Share]:
    return [Share(Context(None, rank, ranks), tuple(edges)) for rank in range(ranks)]


def attended_by_parts(q: Tensor, k: Tensor, v: Tensor, parts: list[Share], kernel: str, causal: dict, monkeypatch) -> Tensor:
    """q [T, heads, d], k and v [T, kv_heads, d] of the row -> [T, heads, d], each rank's tokens by its own call."""
    there = [share.places.to(q.device) for share in parts]
    gathered = torch.cat([torch.cat((k, v), 1)[at] for at in there])
    monkeypatch.setattr(Split, "gather", lambda self, x: gathered)
    out = torch.zeros_like(q)
    for share, at in zip(parts, there, strict=True):
        out = out.index_copy(0, at, split_attention(share, q.device).attend(q[at], k[at], v[at], kernel, None, causal))
    return out
