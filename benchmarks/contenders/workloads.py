"""The fixed work of every speed comparison: lists of samples, drawn once from a seeded generator, and the shapes of the model.

pretraining: one tile and a short caption each. finetuning: three in ten are text alone, the others have one to seven tiles (six and the
thumbnail) and longer answers. Random tokens and pixels: what is in them costs nothing.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from nvlm_train.model.accounting import SampleWork

WORKLOADS = ("pretraining", "finetuning")
STAGES = {"pretraining": "pretrain", "finetuning": "sft"}


@dataclass(frozen=True)
class Piece:
    """A sample: tiles (thumbnail included), tokens of text, and how many of them, at the end, are supervised."""

    tiles: int
    text: int
    supervised: int


@dataclass(frozen=True)
class Shapes:
    """Of InternViT and Qwen2, tile_tokens visual tokens a tile; row: tokens of a packed row."""

    vit_layers: int
    vit_width: int
    vit_heads: int
    vit_ffn: int
    tile: int
    patch: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    row: int
    text_scale: int         # every length of text is divided by it
    samples: tuple[int, int]    # of pretraining, of finetuning

    @property
    def tile_tokens(self) -> int:
        return (self.tile // self.patch // 2) ** 2


SHAPES = {
    # InternViT-300M and Qwen2-1.5B, its output layer untied.
    "1.5b": Shapes(24, 1024, 16, 4096, 448, 14, 28, 1536, 12, 2, 128, 8960, 151_936, 8192, 1, (256, 96)),
    # 2/7 of InternViT-300M and Qwen2-7B in depth and vocabulary: layers of the whole size in the whole model's proportions, a step on one
    # GPU with fp32 masters and without recomputation.
    "7b": Shapes(7, 1024, 16, 4096, 448, 14, 8, 3584, 28, 4, 128, 18_944, 43_520, 8192, 1, (256, 96)),
    # The same in minutes on a CPU; says whether all of it runs, nothing about speed.
    "tiny": Shapes(2, 32, 2, 64, 32, 4, 2, 64, 4, 2, 16, 96, 1_100, 512, 16, (24, 12)),
}


def pieces(workload: str, shapes: Shapes) -> list[Piece]:
    draw = {"pretraining": _captions, "finetuning": conversations}[workload]
    drawn = draw(shapes.samples[WORKLOADS.index(workload)], lambda tokens: max(2, tokens // shapes.text_scale))
    # Where text is scaled down to a few tokens: the first of a sample has none before it to be predicted from.
    return [replace(piece, supervised=min(piece.supervised, piece.text - 1)) for piece in drawn]


def _captions(count: int, sized: Callable[[int], int]) -> list[Piece]:
    drawn = random.Random(1)
    lengths = [min(250, max(12, int(drawn.lognormvariate(3.9, 0.6)))) for _ in range(count)]
    return [Piece(1, sized(length), sized(max(8, length - 8))) for length in lengths]


def conversations(count: int, sized: Callable[[int], int] = int) -> list[Piece]:
    """Of finetuning. sized: what becomes of a length of text."""
    drawn, found = random.Random(2), []
    for _ in range(count):
        tiles = 0 if drawn.random() < 0.3 else drawn.choice([1, 1, 3, 4, 5, 5, 7, 7, 7])
        length = min(1300, max(24, int(drawn.lognormvariate(4.9 if tiles else 6.0, 0.7))))
        found.append(Piece(tiles, sized(length), sized(max(8, int(length * 0.6)))))
    return found


def in_sequence(work: list[Piece], shapes: Shapes) -> list[SampleWork]:
    """What the samples ask of a decoder-only model, in the accounting's terms."""
    return [SampleWork(piece.tiles * shapes.tile_tokens + piece.text, piece.tiles, piece.supervised) for piece in work]
