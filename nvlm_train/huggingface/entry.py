"""One tensor of ours and the tensors of a Hugging Face file that hold the same numbers.

The two sides differ in what lies side by side, never in a value: `join` and `split` are each other's inverse to the bit.
Shapes are unpadded on our side. On theirs a released NVLM has dummy heads, whose parts are zero: `join` checks that and
leaves them out, `split` puts them in.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from nvlm_train.errors import CheckpointError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A tensor under our whole-model name, and where its numbers lie in a Hugging Face folder.

    join: their tensors, in the order of `theirs` -> ours. split: ours -> theirs. Both keep the dtype.
    """

    ours: str
    shape: Shape
    theirs: tuple[str, ...]
    their_shapes: tuple[Shape, ...]
    join: Callable[[list[Tensor]], Tensor]
    split: Callable[[Tensor], list[Tensor]]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def same(ours: str, theirs: str, *shape: int, their_shape: Shape | None = None) -> Entry:
    """The same numbers in the same order, perhaps with other dimensions of size 1."""
    their_shape = their_shape or shape
    return Entry(ours, shape, (theirs,), (their_shape,), partial(_reshaped, shape=shape),
                 partial(_split_reshaped, shape=their_shape))


def grouped(ours: str, theirs: Sequence[str], groups: int, rows: Sequence[int], *columns: int) -> Entry:
    """Several tensors of theirs, [groups * rows[i], *columns], taken turn by turn: each group's rows of the first, then of the
    second, and so on.

    A weight has columns, a bias none. groups=1 puts them behind each other.
    """
    shapes = tuple((groups * count, *columns) for count in rows)
    return Entry(ours, (groups * sum(rows), *columns), tuple(theirs), shapes, partial(join_groups, groups=groups),
                 partial(split_groups, groups=groups, rows=tuple(rows)))


def fused_heads(ours: str, theirs: str, heads: int, head_dim: int, dummy_heads: int, *columns: int) -> Entry:
    """One [Q; K; V] of theirs, each with the dummy heads behind the real ones -> [q, k, v] head by head."""
    width, padded = heads * head_dim, (heads + dummy_heads) * head_dim
    return Entry(ours, (3 * width, *columns), (theirs,), ((3 * padded, *columns),),
                 partial(_join_fused, name=theirs, heads=heads, width=width),
                 partial(_split_fused, heads=heads, head_dim=head_dim, padded=padded))


def padded(ours: str, theirs: str, shape: Shape, dim: int, extra: int, checked: bool = True) -> Entry:
    """The same numbers with `extra` zeros behind them along one dimension. Unchecked, they may be anything in a file."""
    their_shape = tuple(size + extra * (d == dim) for d, size in enumerate(shape))
    return Entry(ours, shape, (theirs,), (their_shape,),
                 partial(_join_padded, name=theirs, dim=dim, size=shape[dim], checked=checked),
                 partial(_split_padded, dim=dim, size=their_shape[dim]))


def join_groups(parts: Sequence[Tensor], groups: int) -> Tensor:
    """[groups * rows_i, …] each -> [groups * sum of rows_i, …], group by group."""
    return torch.cat([part.unflatten(0, (groups, -1)) for part in parts], 1).flatten(0, 1)


def split_groups(whole: Tensor, groups: int, rows: Sequence[int]) -> list[Tensor]:
    """The inverse of `join_groups`."""
    return [part.flatten(0, 1) for part in whole.unflatten(0, (groups, -1)).split(list(rows), 1)]


def _reshaped(parts: list[Tensor], shape: Shape) -> Tensor:
    return parts[0].reshape(shape)


def _split_reshaped(whole: Tensor, shape: Shape) -> list[Tensor]:
    return [whole.reshape(shape)]


def _join_fused(parts: list[Tensor], name: str, heads: int, width: int) -> Tensor:
    qkv = _real_part(parts[0].unflatten(0, (3, -1)), name, 1, width)
    return join_groups(qkv.unbind(), heads)


def _split_fused(whole: Tensor, heads: int, head_dim: int, padded: int) -> list[Tensor]:
    return [torch.cat([_with_padding(part, 0, padded) for part in split_groups(whole, heads, (head_dim,) * 3)])]


def _join_padded(parts: list[Tensor], name: str, dim: int, size: int, checked: bool) -> Tensor:
    return _real_part(parts[0], name, dim, size) if checked else parts[0].narrow(dim, 0, size)


def _split_padded(whole: Tensor, dim: int, size: int) -> list[Tensor]:
    return [_with_padding(whole, dim, size)]


def _with_padding(tensor: Tensor, dim: int, size: int) -> Tensor:
    after = [0] * (2 * tensor.ndim)
    after[2 * (tensor.ndim - 1 - dim) + 1] = size - tensor.shape[dim]
    return F.pad(tensor, after)


def _real_part(tensor: Tensor, name: str, dim: int, size: int) -> Tensor:
    """Without the dummy heads' entries. Raises CheckpointError if one of them says something: then they are no dummies."""
    real, dummy = tensor.split((size, tensor.shape[dim] - size), dim)
    if bool(dummy.any()):
        raise CheckpointError(
            f"{name}: what lies behind its first {size} channels would be dummy heads and so all 0, but holds values up to "
            f"{float(dummy.abs().max()):g}. This is no vision encoder of {size} real channels with dummy heads")
    return real
