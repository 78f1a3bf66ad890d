"""fp8 by torch on a GPU: `pytest tests/gpu/test_fp8_gpu.py -m "" -rs`. What rounding may do, and why, says tests/kernels/test_fp8.py.

Tensor cores of Hopper add 32 terms and the sum so far after shifting them to the largest one's exponent, and keep some 14 bits (DeepSeek-V3
report, section 3.3.2). So each of these 33 may lose 2^-13 of the largest, which is 2^-8 of the sum of the terms' absolute values at most, and K / 32
sums one after the other lose 2^-13 each: together below 2^-7, a 16th of what rounding both factors may do.
"""

import json
from pathlib import Path

import pytest
import torch

from nvlm_train.model.fp8_cast import PLAIN, Casts, compiled, product, round_gradient, round_input
from nvlm_train.model.fp8_linear import Fp8Product
from tests.engine.launching import launch

CAPABLE = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
pytestmark = [pytest.mark.distributed, pytest.mark.skipif(not CAPABLE, reason="needs a GPU of compute capability 8.9 or higher")]
TRAIN = Path(__file__).parents[1] / "parity" / "train_ranks.py"
TOKENS, WIDE, OUT = 512, 256, 384
SUMS = 2**-7


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=random) * torch.randn(shape, generator=random).exp()
    return values.to("cuda", torch.bfloat16)


@pytest.mark.parametrize("casts", [PLAIN, compiled()], ids=["plain", "compiled"])
def test_casts_are_the_cpus(casts: Casts):
    """Bit for bit, but for one case: a GPU may multiply and round fp32 numbers in one operation, which turns a tie now and then. Fewer
    than one in a thousand numbers, and those by one step of their format, a fourth of themselves at most."""
    for own, plain in ((casts.input, round_input), (casts.gradient, round_gradient)):
        x = drawn(TOKENS, WIDE)
        got, expected = own(x), plain(x.cpu())
        assert got.values.dtype == expected.values.dtype and got.values.is_contiguous()
        assert float(got.scale) == pytest.approx(float(expected.scale), rel=2**-22)
        values, others = got.values.float().cpu(), expected.values.float()
        assert (values != others).float().mean() < 1e-3
        assert ((values - others).abs() <= others.abs() / 4 + 2**-9).all()
        assert torch.equal(casts.turned(got.values).float(), got.values.float().t()) and casts.turned(got.values).is_contiguous()


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("first", [round_input, round_gradient])
def test_the_product_is_of_the_rounded_numbers(first, quick):
    """Sums, and the result's rounding to bf16, 2^-8."""
    a, b = first(drawn(TOKENS, WIDE)), round_input(drawn(OUT, WIDE, seed=1))
    got = product(a, b, torch.bfloat16, quick).double()
    ours, theirs = (part.values.double() * part.scale.double() for part in (a, b))
    exact = ours @ theirs.t()
    assert ((got - exact).abs() <= SUMS * (ours.abs() @ theirs.abs().t()) + 2**-8 * exact.abs()).all()


@pytest.mark.parametrize("casts", [PLAIN, compiled()], ids=["plain", "compiled"])
def test_a_layer_and_its_gradients_are_the_cpus(casts: Casts):
    """Within a fiftieth in the root mean square: bf16 results are 2^-8 / sqrt(3) off, 0.2%, and sums, of terms of all sizes and signs, far less
    than the 2^-7 that they may be. A wrong factor, scale or order would be off by more than fp8's own 5%."""
    found = []
    for device in ("cuda", "cpu"):
        x, weight = drawn(TOKENS, 1, WIDE).to(device).requires_grad_(), drawn(OUT, WIDE, seed=1).to(device).requires_grad_()
        out = Fp8Product(casts if device == "cuda" else PLAIN)(x, weight)
        out.backward(drawn(TOKENS, 1, OUT, seed=2).to(device))
        found.append([tensor.detach().float().cpu() for tensor in (out, x.grad, weight.grad)])
    for got, expected in zip(*found, strict=True):
        assert got.dtype == expected.dtype and (got - expected).norm() / expected.norm() < 0.02


@pytest.mark.parametrize("casts", [PLAIN, compiled()], ids=["plain", "compiled"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_so(casts: Casts, bad):
    x = drawn(TOKENS, WIDE)
    x[3, 5] = bad
    weight = round_input(drawn(OUT, WIDE))
    assert not product(casts.input(x), weight, torch.bfloat16).isfinite().any()
    assert product(casts.input(torch.zeros_like(x)), weight, torch.bfloat16).abs().max() == 0


@pytest.mark.full
def test_fp8_learns_what_bf16_learns(tmp_path):
    """Three hundred steps, and the bound of tests/kernels/test_fp8_engine.py."""
    curves = []
    for name, more in (("bf16", ()), ("fp8", ("model.fp8=current", "model.fp8_layers=all"))):
        out = tmp_path / f"{name}.json"
        done = launch(TRAIN, 1, out, "nvlm_d_tiny", 300, "stage=sft", "model.dtype=bf16", *more, folder=tmp_path, timeout=900)
        assert done.returncode == 0, done.output[-4000:]
        curves.append([row["loss"] for row in json.loads(out.read_text())["nvlm_d_tiny"]["sft"]])
    first = curves[0][0]
    plain, fp8 = ([sum(losses[at:at + 20]) / 20 for at in range(0, 300, 20)] for losses in curves)
    assert first - plain[-1] > 1
    for ours, theirs in zip(fp8, plain, strict=True):
        assert abs(ours - theirs) <= 0.04 * (first - theirs) + 1e-3 * first
