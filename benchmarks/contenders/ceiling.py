"""The ceiling: the same training step by hand in plain PyTorch, with nothing that a framework needs.

Packed rows, variable-length flash attention, compiled blocks, the frozen encoder without autograd, logits of supervised tokens only,
bf16 weights without fp32 masters, fused AdamW. No parallelism, no checkpoints, no data: tiles lie on the device, normalised. On a CPU
attention is a call a sample and nothing is compiled: that only shows that it runs.
"""

import inspect
import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contenders.result import facts
from benchmarks.contenders.workloads import Piece, Shapes
from benchmarks.timing import timed

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None


@dataclass
class Row:
    tokens: Tensor
    cos: Tensor
    sin: Tensor
    edges: list[int]
    cu: Tensor
    longest: int
    tiles: Tensor | None
    shown_at: Tensor
    asked_at: Tensor
    labels: Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, row: Row) -> Tensor:
    """Causal within each sample. [T, heads, d] each, with as many key heads as query heads."""
    if q.is_cuda:
        causal = {"is_causal": True} if "is_causal" in inspect.signature(varlen_attn).parameters else {"window_size": (-1, 0)}
        return varlen_attn(q, k, v, row.cu, row.cu, row.longest, row.longest, **causal)
    parts = [F.scaled_dot_product_attention(*(x[a:b].transpose(0, 1)[None] for x in (q, k, v)), is_causal=True)[0].transpose(0, 1)
             for a, b in itertools.pairwise(row.edges)]
    return torch.cat(parts)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


class DecoderLayer(nn.Module):
    def __init__(self, s: Shapes):
        super().__init__()
        self.s = s
        self.before, self.between = nn.RMSNorm(s.width), nn.RMSNorm(s.width)
        self.project = nn.Linear(s.width, (s.heads + 2 * s.kv_heads) * s.head_dim)
        self.back = nn.Linear(s.heads * s.head_dim, s.width, bias=False)
        self.wide, self.narrow = nn.Linear(s.width, 2 * s.ffn, bias=False), nn.Linear(s.ffn, s.width, bias=False)

    def forward(self, x: Tensor, row: Row) -> Tensor:
        s = self.s
        q, k, v = self.project(self.before(x)).unflatten(-1, (-1, s.head_dim)).split((s.heads, s.kv_heads, s.kv_heads), 1)
        q, k = turned(q, row.cos, row.sin), turned(k, row.cos, row.sin)
        k, v = (each.repeat_interleave(s.heads // s.kv_heads, 1) for each in (k, v))
        x = x + self.back(attend(q, k, v, row).flatten(1))
        gate, up = self.wide(self.between(x)).chunk(2, -1)
        return x + self.narrow(F.silu(gate) * up)


class EncoderLayer(nn.Module):
    def __init__(self, s: Shapes):
        super().__init__()
        self.heads = s.vit_heads
        self.before, self.between = nn.LayerNorm(s.vit_width), nn.LayerNorm(s.vit_width)
        self.project, self.back = nn.Linear(s.vit_width, 3 * s.vit_width), nn.Linear(s.vit_width, s.vit_width)
        self.wide, self.narrow = nn.Linear(s.vit_width, s.vit_ffn), nn.Linear(s.vit_ffn, s.vit_width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.back(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.between(x))))


class Everything(nn.Module):
    def __init__(self, s: Shapes):
        super().__init__()
        self.s = s
        self.patches = nn.Conv2d(3, s.vit_width, s.patch, s.patch)
        self.encoder = nn.ModuleList(EncoderLayer(s) for _ in range(s.vit_layers))
        self.connector = nn.Sequential(nn.LayerNorm(4 * s.vit_width), nn.Linear(4 * s.vit_width, s.width), nn.GELU(),
                                       nn.Linear(s.width, s.width))
        self.embedding = nn.Embedding(s.vocab, s.width)
        self.decoder = nn.ModuleList(DecoderLayer(s) for _ in range(s.layers))
        self.last, self.output = nn.RMSNorm(s.width), nn.Linear(s.width, s.vocab, bias=False)

    @torch.no_grad()
    def see(self, tiles: Tensor) -> Tensor:
        x = self.patches(tiles).flatten(2).transpose(1, 2)
        for layer in self.encoder:
            x = layer(x)
        half = self.s.tile // self.s.patch // 2     # each 2 x 2 patches become one token
        return x.unflatten(1, (half, 2, half, 2)).transpose(2, 3).flatten(3, 5).flatten(1, 2)

    def forward(self, row: Row) -> Tensor:
        """Sum of the supervised tokens' losses."""
        x = self.embedding(row.tokens)
        if row.tiles is not None:
            x = x.index_copy(0, row.shown_at, self.connector(self.see(row.tiles)).flatten(0, 1))
        for layer in self.decoder:
            x = layer(x, row)
        return F.cross_entropy(self.output(self.last(x.index_select(0, row.asked_at))).float(), row.labels, reduction="sum")


def rows_of(work: list[Piece], s: Shapes, device: torch.device, dtype: torch.dtype) -> list[Row]:
    """First fit, longest first, into rows of `s.row` tokens."""
    lengths = [piece.tiles * s.tile_tokens + piece.text for piece in work]
    rows: list[list[int]] = []
    for number in sorted(range(len(work)), key=lambda number: -lengths[number]):
        home = next((row for row in rows if sum(lengths[i] for i in row) + lengths[number] <= s.row), None)
        if home is None:
            rows.append(home := [])
        home.append(number)
    longest = max(max(lengths), max(s.row - sum(lengths[i] for i in row) for row in rows))      # one graph for all rows
    return [_row([work[i] for i in row], s, longest, device, dtype) for row in rows]


def _row(held: list[Piece], s: Shapes, longest: int, device: torch.device, dtype: torch.dtype) -> Row:
    edges, shown, asked = [0], [], []
    for piece in held:
        start, end = edges[-1], edges[-1] + piece.tiles * s.tile_tokens + piece.text
        shown += range(start, start + piece.tiles * s.tile_tokens)
        asked += range(end - piece.supervised - 1, end - 1)
        edges.append(end)
    edges += [s.row] if edges[-1] < s.row else []
    positions = torch.cat([torch.arange(b - a) for a, b in itertools.pairwise(edges)]).to(device)
    inverse = 1e6 ** (-torch.arange(0, s.head_dim, 2, device=device) / s.head_dim)
    angles = torch.outer(positions, inverse).repeat(1, 2)[:, None]
    tokens = torch.randint(1, s.vocab - 1, (s.row,), device=device)
    at, tiles = torch.tensor(asked, device=device), sum(piece.tiles for piece in held)
    return Row(tokens, angles.cos().to(dtype), angles.sin().to(dtype), edges, torch.tensor(edges, dtype=torch.int32, device=device), longest,
               torch.randn(tiles, 3, s.tile, s.tile, device=device, dtype=dtype) if tiles else None,
               torch.tensor(shown, device=device), at, tokens[at + 1])


def measure(workload: str, work: list[Piece], shapes: Shapes, rounds: int) -> dict:
    cuda = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else torch.float32
    with device:
        model = Everything(shapes).to(dtype)
    frozen = [model.patches, model.encoder]
    if workload == "pretraining":
        frozen += [model.embedding, model.decoder, model.last, model.output]
    for part in frozen:
        part.requires_grad_(False)
    if cuda:
        for layer in model.decoder:
            layer.compile(dynamic=False)
        for layer in model.encoder:
            layer.compile(dynamic=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=cuda)
    rows = rows_of(work, shapes, device, dtype)
    total = sum(len(row.labels) for row in rows)

    def step() -> None:
        for row in rows:
            (model(row) / total).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    used = sum(piece.tiles * shapes.tile_tokens + piece.text for piece in work)
    return facts(timed(step, rounds), work, shapes, workload, rows=len(rows), fill=used / len(rows) / shapes.row)
