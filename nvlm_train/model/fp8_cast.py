"""Rounding to fp8 with one scale a tensor, and the product of what was rounded. Small functions of tensors alone, to be compiled.

Formats (OCP 8-bit floating point, 2023; Micikevicius et al. 2022): E4M3 has 3 bits of mantissa and goes to 448, for inputs and
weights; E5M2 has 2 and goes to 57,344, for gradients, whose values spread wider. The scale makes a tensor's largest value its format's.

Where one number is not finite the scale is not, and no number of a product of the tensor is: a step that overflowed is found and
left out as in bf16. Casts alone would not do: torch's turn an infinity into 448.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nvlm_train.model.elementwise import kernel

INPUT, GRADIENT = torch.float8_e4m3fn, torch.float8_e5m2
# Below the largest value of any tensor that is not zero: 57,344 / SMALLEST and SMALLEST / 57,344 are ordinary fp32 numbers.
SMALLEST = 2.0**-96


class Rounded(NamedTuple):
    """values [rows, width] in fp8; scale: fp32, what they are to be multiplied with."""

    values: Tensor
    scale: Tensor


def _rounded(x: Tensor, kind: torch.dtype) -> Rounded:
    largest = torch.linalg.vector_norm(x, math.inf, dtype=torch.float32).clamp(min=SMALLEST)    # keeps NaN
    top = torch.finfo(kind).max
    return Rounded((x.float() * (top / largest)).to(kind).contiguous(), largest / top)


def round_input(x: Tensor) -> Rounded:
    """[rows, width] of inputs or weights, to E4M3."""
    return _rounded(x, INPUT)


def round_gradient(grad: Tensor) -> Rounded:
    """[rows, width], to E5M2."""
    return _rounded(grad, GRADIENT)


def turned(values: Tensor) -> Tensor:
    """[rows, width] -> [width, rows] in memory too: fp8 products on Hopper read both factors along the summed side."""
    return values.t().contiguous()


class Casts(NamedTuple):
    """The three functions above, as they are or compiled."""

    input: Callable[[Tensor], Rounded] = round_input
    gradient: Callable[[Tensor], Rounded] = round_gradient
    turned: Callable[[Tensor], Tensor] = turned


PLAIN = Casts()


def compiled() -> Casts:
    """One pass to find the largest value and one to round; plain, an fp32 copy of the tensor would be written and read between."""
    return Casts(*map(kernel, PLAIN))


def product(a: Rounded, b: Rounded, dtype: torch.dtype, quick: bool = False) -> Tensor:
    """a [M, K] times the transpose of b [N, K], [M, N] in `dtype`, summed in fp32. All sides multiples of 16.

    quick: tensor cores bring their sums to full fp32 less often (Hopper's fast accumulation), as Transformer Engine does forward and
    not backward. torch.nn.functional.scaled_mm is the documented form in newer versions only; this one all supported versions have,
    and it was the one measured.
    """
    return torch._scaled_mm(a.values, b.values.t(), scale_a=a.scale, scale_b=b.scale, out_dtype=dtype, use_fast_accum=quick)
