"""fp32 to bf16 at random: up with the probability of what is cut off, so that the mean is exact and no small change is lost.

Rounding to nearest loses a change of less than 2^-8 of a number; a moment with beta2 = 0.98 would stay off by up to 20% of itself. What
is random is a hash of the gradient and the step's number: no state to save, and the same after every resume on the same layout.
"""

import torch
from torch import Tensor

_FACTORS = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)     # odd, of 32 bits: golden ratio, and MurmurHash3's two
_LOW = 0xFFFF


def noises(gradient: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Two tensors of whole numbers below 2^16, int32, as random as the bits of an fp32 gradient and of `step` make them."""
    first, second, third = map(_signed, _FACTORS)
    mixed = gradient.view(torch.int32) * first + _signed(step * _FACTORS[1])        # int32 wraps around, here and below
    mixed = (mixed ^ _shifted(mixed, 15)) * second
    mixed = (mixed ^ _shifted(mixed, 13)) * third
    high = _shifted(mixed, 16)
    return (mixed ^ high) & _LOW, high


def rounded(wide: Tensor, noise: Tensor) -> Tensor:
    """fp32 numbers that bf16 holds exactly: the low 16 bits of `wide` cut off, after `noise` was added to them."""
    return ((wide.view(torch.int32) + noise) & ~_LOW).view(torch.float32)


def _shifted(numbers: Tensor, by: int) -> Tensor:
    """Shifted right with zeros moving in; torch's own shift repeats the sign."""
    return (numbers >> by) & ((1 << (32 - by)) - 1)


def _signed(number: int) -> int:
    """A number of 32 bits as int32 holds it."""
    number %= 2**32
    return number - 2**32 if number >= 2**31 else number
