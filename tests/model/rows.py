"""Packed rows made by hand, for each architecture: two samples and padding, tiny tiles."""

import itertools

import torch

from nvlm_train.contracts import PackedBatch

T, EDGES, TOKENS_PER_TILE, TILE = 352, [0, 150, 330, 352], 16, 32

# Of one tile in the first sample and two in the second: where each stands in the sequence (-1: in the memory), who reads what of the
# memory, and the tags that stand there. X's tags at 170 and 174 read their own tile, the text behind them both.
LAYOUTS = {
    "nvlm_d": ([20, 170, 200], [], [[]]),
    "nvlm_x": ([-1, -1, -1], [[20, 150, 0, 1], [170, 174, 1, 2], [174, 178, 2, 3], [178, 330, 1, 3]], [[], [], []]),
    "nvlm_h": ([20, -1, 200], [[196, 330, 0, 1]], [[501, 502, 503, -1]]),
}
KINDS = ("image", "mixed", "text", "empty")


def make_row(architecture: str, seed: int, kind: str = "image") -> PackedBatch:
    """image: both samples have tiles; mixed: only the second; text: none; empty: a row of padding."""
    if kind == "empty":
        return PackedBatch(torch.zeros(T, dtype=torch.long), torch.arange(T), torch.zeros(T, dtype=torch.long), torch.zeros(T),
                           torch.tensor([0, T], dtype=torch.int32), torch.empty(0, 3, TILE, TILE, dtype=torch.uint8),
                           torch.empty(0, dtype=torch.long))
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(10, 900, (T,), generator=random)
    positions = torch.cat([torch.arange(b - a) for a, b in itertools.pairwise(EDGES)])
    weights = torch.zeros(T)
    weights[100:149], weights[280:329] = 1.0, 0.5
    starts, reads, tags = (torch.tensor(part, dtype=torch.long) for part in LAYOUTS[architecture])
    pixels = torch.randint(0, 256, (3, 3, TILE, TILE), dtype=torch.uint8, generator=random)
    keep = {"image": [0, 1, 2], "mixed": [1, 2], "text": []}[kind]
    dropped = int((starts[:3 - len(keep)] < 0).sum())     # memory tiles that are gone, in front
    reads = reads.view(-1, 4) - torch.tensor([0, 0, dropped, dropped])
    reads = reads[(reads[:, 2] >= 0) & (reads[:, 2] < int((starts[keep] < 0).sum()))]
    return PackedBatch(tokens, positions, tokens.roll(-1), weights, torch.tensor(EDGES, dtype=torch.int32), pixels[keep], starts[keep],
                       ("a", "b"), ("tiny", "tiny"), reads, tags[:int((starts[keep] < 0).sum())])
