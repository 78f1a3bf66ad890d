"""Compiled parts against autograd of the same formulas in float64, as written and, in a slow test, through the compiler.

fp32: each number is a dozen operations of 24 bits of mantissa on numbers of size up to about 10, so 12 x 10 x 2^-24 = 7e-6. bf16: computed
in fp32 and rounded once, by at most 2^-9 of itself, so 2^-8 of it holds for what is rounded twice (a gradient that was given in bf16).
"""

import pytest
import torch
import torch.nn.functional as F

from nvlm_train.model import elementwise
from nvlm_train.model.elementwise import SwiGLU, rotate
from nvlm_train.model.loss import token_losses
from nvlm_train.model.weight_gradient import add_product

BOUND = {torch.float32: {"rtol": 0, "atol": 7e-6}, torch.bfloat16: {"rtol": 2**-8, "atol": 1e-5}}
DTYPES = pytest.mark.parametrize("dtype", BOUND)


class Alone:
    """A tensor-parallel group of one."""

    @staticmethod
    def rank() -> int:
        return 0

    @staticmethod
    def size() -> int:
        return 1


@pytest.fixture(params=["as written", pytest.param("compiled", marks=pytest.mark.slow)])
def way(request, monkeypatch):
    if request.param == "as written":
        elementwise.kernel.cache_clear()
        monkeypatch.setattr(torch, "compile", lambda function: function)
    yield request.param
    elementwise.kernel.cache_clear()


def numbers(*shape: int, dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(got.double(), expected.double(), **BOUND[dtype])


@DTYPES
def test_swiglu_and_its_gradient(way, dtype):
    x, gradient = numbers(24, 1, 96, dtype=dtype).requires_grad_(), numbers(24, 1, 48, dtype=dtype, seed=1)
    wide = x.detach().double().requires_grad_()
    gate, up = wide.chunk(2, -1)
    expected = F.silu(gate) * up
    out = SwiGLU(None)(x)
    assert out.dtype == dtype and out.shape == (24, 1, 48)
    close(out, expected, dtype)
    close(*torch.autograd.grad(out, x, gradient), *torch.autograd.grad(expected, wide, gradient.double()), dtype)


@DTYPES
def test_rotary_positions_and_their_gradient(way, dtype):
    """Heads cut out of [q k v], so not contiguous, as they come."""
    qkv, angles = numbers(24, 3 * 4 * 32, dtype=dtype), numbers(24, 16)
    x = qkv.unflatten(-1, (4, 96))[..., 32:64].detach().requires_grad_()
    wide, twice = x.detach().double().requires_grad_(), torch.cat((angles, angles), -1)[:, None].double()
    left, right = wide.chunk(2, -1)
    expected = wide * twice.cos() + torch.cat((-right, left), -1) * twice.sin()
    gradient = numbers(24, 4, 32, dtype=dtype, seed=1)
    out = rotate(x, angles.cos(), angles.sin())
    assert out.dtype == dtype
    close(out, expected, dtype)
    close(*torch.autograd.grad(out, x, gradient), *torch.autograd.grad(expected, wide, gradient.double()), dtype)


@DTYPES
def test_cross_entropy_and_its_gradient(way, dtype):
    """Seven chunks, the last of one token; columns of padding; the gradient in the logits' own memory."""
    logits, labels, weights = numbers(19, 60, dtype=dtype) * 4, numbers(19).abs().mul(20).long(), numbers(19, seed=1)
    wide = logits.double().requires_grad_()
    expected = F.cross_entropy(wide, labels, reduction="none")
    x = F.pad(logits, (0, 4), value=-torch.inf).requires_grad_()
    mine = x * 1
    losses = token_losses(mine, labels, Alone, compiled=way == "compiled", at_once=200)
    assert losses.dtype == torch.float32
    close(losses, expected, torch.float32)
    before = mine.detach().clone()
    gradients = []
    mine.register_hook(gradients.append)
    (gradient,) = torch.autograd.grad((losses * weights).sum(), x)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), wide)
    assert gradients[0].data_ptr() == mine.data_ptr() and not torch.equal(mine, before)
    assert torch.equal(gradient[:, 60:], torch.zeros(19, 4, dtype=dtype))
    close(gradient[:, :60], wanted, dtype)


def test_without_a_gradient_the_logits_stay_as_they_are():
    logits = numbers(5, 40)
    before = logits.clone()
    with torch.no_grad():
        token_losses(logits, torch.arange(5), Alone)
    assert torch.equal(logits, before)


def test_a_second_backward_pass_over_overwritten_logits_is_refused():
    x = numbers(5, 40).requires_grad_()
    total = token_losses(x * 1, torch.arange(5), Alone).sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_a_logit_that_is_not_a_number_is_a_loss_that_is_not():
    logits = numbers(3, 40)
    logits[1, 7] = torch.nan
    losses = token_losses(logits, torch.zeros(3, dtype=torch.long), Alone)
    assert losses.isfinite().tolist() == [True, False, True]


@DTYPES
def test_a_weight_gradient_is_added_in_fp32(dtype):
    """Two products of 64 terms on top of a sum: 64 x 2^-24 of terms of size up to 10, never a rounding to bf16."""
    total = numbers(16, 32, seed=2)
    expected = total.double()
    for seed in (0, 1):
        gradient, x = numbers(64, 16, dtype=dtype, seed=seed), numbers(64, 32, dtype=dtype, seed=seed + 5)
        add_product(total, gradient, x)
        expected += gradient.double().t() @ x.double()
    assert total.dtype == torch.float32 and float((total - expected).abs().max()) < 128 * 10 * 2**-24
