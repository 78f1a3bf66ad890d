"""fp8 without Transformer Engine: rounding, products, gradients, and which layers are taken. On the CPU, whose scaled product sums the
same fp8 numbers in fp32 as a GPU's; on a GPU see tests/gpu/test_fp8_gpu.py.

How far off fp8 may be. A number of E4M3 (3 bits of mantissa) is off by at most 2^-4 of itself, or by half the least step, 2^-10 of
its scale; of E5M2 (2 bits) 2^-3 and 2^-17. Those bounds hold for each number, and `farthest` carries them through a product. In the root mean square
an error evenly spread over its step is 1/sqrt(3) of its bound at most, and those of two factors are independent.
"""

import math
from dataclasses import replace

import pytest
import torch

from nvlm_train.config.fp8_layers import FC1, FC2, PAYS, fp8_linears, linears, reach, told
from nvlm_train.config.schema import Language, Model
from nvlm_train.model.fp8_cast import GRADIENT, INPUT, PLAIN, compiled, product, round_gradient, round_input, turned
from nvlm_train.model.fp8_linear import Fp8Product, Messages

RELATIVE, LEAST = {INPUT: 2**-4, GRADIENT: 2**-3}, {INPUT: 2**-10, GRADIENT: 2**-17}
ROUND = {INPUT: round_input, GRADIENT: round_gradient}
TOKENS, WIDE, OUT = 256, 64, 96


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values over some powers of two, as activations have them."""
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=random) * torch.randn(shape, generator=random).exp()).to(dtype)


def bound(x: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """Of each number's rounding error; the scale itself is rounded in fp32, 2^-22 of a number at most."""
    scale = x.abs().max().double() / torch.finfo(kind).max
    return (RELATIVE[kind] + 2**-22) * x.abs().double() + LEAST[kind] * scale


def farthest(a: torch.Tensor, b: torch.Tensor, kinds: tuple[torch.dtype, torch.dtype]) -> torch.Tensor:
    """Of each number of a times b transposed: |a||b| with both as large as rounding may make them, less |a||b|; and fp32 sums."""
    wide = (a.abs().double() + bound(a, kinds[0])) @ (b.abs().double() + bound(b, kinds[1])).t()
    return wide - (1 - a.shape[1] * 2**-23) * (a.abs().double() @ b.abs().double().t())


def by_hand(x: float, bits: int, lowest: int) -> float:
    """x rounded to `bits` of mantissa behind the leading one, ties to even; below 2^lowest in steps of that power's."""
    exponent = max(math.frexp(x)[1] - 1, lowest) if x else lowest
    step = 2.0 ** (exponent - bits)
    return round(x / step) * step


@pytest.mark.parametrize(("kind", "bits", "lowest"), [(INPUT, 3, -6), (GRADIENT, 2, -14)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_number_is_rounded_to_its_formats_nearest(kind, bits, lowest, dtype):
    """Scaled so that the largest is the format's largest."""
    x = drawn(16, 64, dtype=dtype)
    values, scale = ROUND[kind](x)
    factor = torch.finfo(kind).max / x.abs().max().float()
    assert values.dtype == kind and values.float().abs().max() == torch.finfo(kind).max and scale == x.abs().max().float() / torch.finfo(kind).max
    expected = [[by_hand(number, bits, lowest) for number in row] for row in (x.float() * factor).tolist()]
    assert values.float().tolist() == expected
    assert ((values.double() * scale.double() - x.double()).abs() <= bound(x, kind)).all()


@pytest.mark.parametrize("kinds", [(INPUT, INPUT), (GRADIENT, INPUT)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_of_the_rounded_numbers(kinds, dtype):
    """Beside the exact product of them: fp32 sums of K terms, and the result's own rounding, 2^-8 in bf16. Beside the product without
    fp8: the bounds above, number by number, and in the root mean square; and it is no product of bf16 numbers, which would be ten times closer."""
    a, b = drawn(TOKENS, WIDE, dtype=dtype), drawn(OUT, WIDE, seed=1, dtype=dtype)
    rounded = ROUND[kinds[0]](a), ROUND[kinds[1]](b)
    got = product(*rounded, dtype).double()
    ours, theirs = (part.values.double() * part.scale.double() for part in rounded)
    last = 2**-8 if dtype == torch.bfloat16 else 2**-24
    exact = ours @ theirs.t()
    assert got.shape == (TOKENS, OUT)
    assert ((got - exact).abs() <= WIDE * 2**-23 * (ours.abs() @ theirs.abs().t()) + last * exact.abs()).all()
    plain = a.double() @ b.double().t()
    assert ((got - plain).abs() <= (farthest(a, b, kinds) + last * got.abs())).all()
    most = math.hypot(*(RELATIVE[kind] / math.sqrt(3) for kind in kinds))
    assert most / 4 < (got - plain).norm() / plain.norm() < most


def layer(casts=PLAIN):
    """(product, x, weight, incoming gradient) of a layer."""
    return (Fp8Product(casts), drawn(TOKENS, 1, WIDE).requires_grad_(), drawn(OUT, WIDE, seed=1).requires_grad_(),
            drawn(TOKENS, 1, OUT, seed=2))


def test_gradients_are_those_of_the_linear_layer():
    """Number by number within what rounding both factors may do. The bias's does not come by a product."""
    linear, x, weight, grad = layer()
    bias = torch.zeros(OUT, requires_grad=True)
    out = linear(x, weight, bias)
    out.backward(grad)
    flat, g = x.detach()[:, 0], grad[:, 0]
    assert out.shape == (TOKENS, 1, OUT) and x.grad.shape == x.shape
    for got, a, b, kinds in ((out[:, 0], flat, weight.detach(), (INPUT, INPUT)), (x.grad[:, 0], g, weight.detach().t(), (GRADIENT, INPUT)),
                             (weight.grad, g.t(), flat.t(), (GRADIENT, INPUT))):
        plain = a.double() @ b.double().t()
        assert ((got - plain).abs() <= farthest(a, b, kinds)).all()
        assert (got - plain).norm() / plain.norm() < math.hypot(*(RELATIVE[kind] / math.sqrt(3) for kind in kinds))
    torch.testing.assert_close(bias.grad, g.sum(0))


@pytest.mark.full      # inductor compiles each function for each of the shapes, the third as the last
def test_compiled_casts_are_the_plain_ones():
    """fp32 has one way to round a product and one to fp8's nearest: bit for bit; shapes that follow make no difference."""
    casts = compiled()
    for shape in ((32, 64), (48, 80), (16, 96)):
        x = drawn(*shape, dtype=torch.bfloat16)
        for own, plain in ((casts.input, round_input), (casts.gradient, round_gradient)):
            got, expected = own(x), plain(x)
            assert torch.equal(got.values.float(), expected.values.float()) and got.scale == expected.scale
        values = round_input(x).values
        assert torch.equal(casts.turned(values).float(), turned(values).float()) and casts.turned(values).is_contiguous()


@pytest.mark.parametrize("kind", [INPUT, GRADIENT])
def test_a_tensor_of_zeros_has_a_scale_and_products_of_zero(kind):
    values, scale = ROUND[kind](torch.zeros(16, 32))
    assert values.float().abs().max() == 0 and 0 < scale < math.inf
    assert product(ROUND[kind](torch.zeros(16, 32)), round_input(drawn(16, 32)), torch.float32).abs().max() == 0


@pytest.mark.parametrize("size", [1e-26, 1e36])
def test_size_does_not_matter(size):
    """Each number of a product, to bf16's rounding, is the factor's multiple: scales reach as far as bf16 does, nearly."""
    a, b = drawn(32, 64).clamp(-8, 8), drawn(16, 64, seed=1)
    plain = product(round_input(a), round_input(b), torch.float32)
    got = product(round_input(a * size), round_input(b), torch.float32)
    assert got.isfinite().all()
    torch.testing.assert_close(got / size, plain, rtol=2**-4, atol=float(plain.abs().max()) * 2**-6)   # a number at a tie may round to the other side


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", ["input", "weight", "gradient"])
def test_what_is_not_finite_stays_so(where, bad):
    """In all that is made of the tensor, so that its step is found and left out; torch's own cast turns an infinity into 448."""
    linear, x, weight, grad = layer()
    with torch.no_grad():
        {"input": x, "weight": weight, "gradient": grad}[where][3] = bad
    out = linear(x, weight)
    out.backward(grad)
    made = {"input": (out, weight.grad), "weight": (out, x.grad), "gradient": (x.grad, weight.grad)}[where]
    others = {"input": (x.grad,), "weight": (weight.grad,), "gradient": (out,)}[where]
    assert not any(tensor.isfinite().any() for tensor in made) and all(tensor.isfinite().all() for tensor in others)


def kept(weight_trains: bool) -> list[tuple]:
    """(dtype, shape) of what a forward leaves for its backward."""
    linear, x, weight, _ = layer()
    found: list[tuple] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append((t.dtype, tuple(t.shape))) or t, lambda t: t):
        linear(x, weight.requires_grad_(weight_trains))
    return found


def test_a_byte_a_number_is_kept_of_the_input_and_nothing_for_a_frozen_weight():
    assert kept(True) == [(INPUT, (TOKENS, WIDE)), (torch.float32, ())]
    assert kept(False) == []


def test_a_frozen_weight_has_no_gradient_product(monkeypatch):
    calls = []
    real = torch._scaled_mm
    monkeypatch.setattr(torch, "_scaled_mm", lambda a, b, **rest: calls.append((tuple(a.shape), tuple(b.shape))) or real(a, b, **rest))
    linear, x, weight, grad = layer()
    linear(x, weight.requires_grad_(False)).backward(grad)
    assert calls == [((TOKENS, WIDE), (WIDE, OUT)), ((TOKENS, OUT), (OUT, WIDE))] and weight.grad is None
    calls.clear()
    linear, x, weight, grad = layer()
    linear(x.detach(), weight).backward(grad)       # nothing below trains: no gradient of the input either
    assert calls == [((TOKENS, WIDE), (WIDE, OUT)), ((OUT, TOKENS), (TOKENS, WIDE))]


def test_every_factor_lies_as_tensor_cores_read_it(monkeypatch):
    """Row by row the first, column by column the second, all sides multiples of 16: what CUDA's product asks for and the CPU's does not."""
    real, seen = torch._scaled_mm, []

    def strict(a, b, **rest):
        assert a.is_contiguous() and b.t().is_contiguous() and not any(side % 16 for side in (*a.shape, *b.shape))
        assert {a.dtype, b.dtype} != {GRADIENT} and all(rest[name].shape == () and rest[name].dtype == torch.float32 for name in ("scale_a", "scale_b"))
        seen.append(rest["use_fast_accum"])
        return real(a, b, **rest)

    monkeypatch.setattr(torch, "_scaled_mm", strict)
    linear, x, weight, grad = layer()
    wide = torch.empty(TOKENS, 1, 2 * OUT)[..., :OUT].copy_(grad)      # a gradient that is a slice of another tensor
    linear(x, weight).backward(wide)
    assert seen == [True, False, False]


def test_a_weights_cast_is_kept_until_it_is_told_or_seen_to_change():
    casts = []
    linear, x, weight, _ = layer(PLAIN._replace(input=lambda t: casts.append(tuple(t.shape)) or round_input(t)))
    own = (OUT, WIDE)

    def made() -> int:
        before = casts.count(own)
        linear(x, weight)
        return casts.count(own) - before

    assert (made(), made()) == (1, 0)
    linear.forget(frozen=False)
    assert made() == 1
    with torch.no_grad():
        weight.mul_(2)
    assert (made(), made()) == (1, 0)
    weight.requires_grad_(False)
    linear.forget(frozen=True)
    assert made() == 1
    linear.forget(frozen=False)     # the optimizer does not write it
    assert made() == 0


def test_a_layer_on_one_rank_owes_nobody():
    x = drawn(8, 4)
    alone = Messages(None, False, False)
    assert alone.gather(x, wait=True) == (x, None) and alone.own(x) is x and alone.send(x) == (x, None)


# -- which layers --------------------------------------------------------------------------------------------------------------

MEASURED = {(1536, 17920): 0.95, (1536, 2048): 0.43, (3584, 37888): 1.30, (18944, 3584): 1.24, (3584, 4608): 0.98, (8192, 7392): 1.28}
QWEN_1B = Language(layers=28, hidden=1536, heads=12, kv_heads=2, ffn=8960)
QWEN_7B = Language(layers=28, hidden=3584, heads=28, kv_heads=4, ffn=18944)
QWEN_72B = Language()


def test_the_rule_takes_what_gained_and_leaves_what_lost():
    assert {sides for sides in MEASURED if reach(*sides) >= PAYS} == {sides for sides, ratio in MEASURED.items() if ratio > 1}
    slower, faster = (max(reach(*s) for s, ratio in MEASURED.items() if ratio <= 1), min(reach(*s) for s, ratio in MEASURED.items() if ratio > 1))
    between = 0.98 + (PAYS - slower) / (faster - slower) * (1.24 - 0.98)
    assert between == pytest.approx(1.1, abs=0.01)      # what the module says of its threshold


@pytest.mark.parametrize(("language", "tensor", "chosen"), [
    (QWEN_1B, 1, ()), (QWEN_7B, 1, (FC1, FC2)), (QWEN_72B, 8, (FC1, FC2)), (QWEN_72B, 1, tuple(linears(QWEN_72B, 1)))])
def test_layers_that_are_taken(language, tensor, chosen):
    model = Model(language=language)
    assert fp8_linears(model, tensor) == chosen
    assert fp8_linears(replace(model, fp8_layers="mlp"), tensor) == (FC1, FC2)
    assert len(fp8_linears(replace(model, fp8_layers="all"), tensor)) == 4


def test_widths_are_a_ranks():
    assert linears(QWEN_7B, 1)[FC1] == (3584, 37888) and linears(QWEN_72B, 8)[FC1] == (8192, 7392) and linears(QWEN_72B, 8)[FC2] == (3696, 8192)


def test_a_line_says_how_many():
    """MLP 3 x 3,584 x 18,944 of those and 3,584 x 4,608 + 3,584 x 3,584."""
    assert told(Model(language=QWEN_7B), 1) == (
        "56 of the decoder's 112 linear layers in fp8 (linear_fc1, linear_fc2; 87% of their weights), the others in bf16")
