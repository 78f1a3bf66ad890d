"""Whole training steps on the fast path (`fast_checks`) beside the plain one: compiled parts, in-place cross-entropy, weight gradients
added up in the product.

fp32: both compute the same sums in another order here and there, of some hundred terms with 24 bits of mantissa: 1e-6 of a loss or a norm
in its first steps. bf16: a value is rounded to 8 bits once where the plain path does so after each operation, by 2^-9 of itself; a loss
is the mean over 98 supervised tokens or more and a norm the root of a sum over 10^5 numbers, whose roundings are independent, so a
tenth of one is left for the loss, and for the norm one.
"""

import json
from pathlib import Path

import pytest

from tests.engine.launching import launch

SCRIPT = Path(__file__).with_name("fast_checks.py")
FP32, BF16 = {"loss": 1e-6, "norm": 1e-6}, {"loss": 2**-9 / 10, "norm": 2**-9}

pytestmark = pytest.mark.distributed


def measured(folder: Path, ranks: int, *checks: str, timeout: int = 300) -> dict:
    done = launch(SCRIPT, ranks, folder / "facts.json", *checks, folder=folder, timeout=timeout)
    assert done.returncode == 0 and not done.survivors, done.output[-4000:]
    return json.loads((folder / "facts.json").read_text())


def alike(found: dict, bound: dict) -> None:
    for (loss, norm), (other, its_norm) in zip(found["fast"], found["plain"], strict=True):
        assert loss == pytest.approx(other, rel=bound["loss"]) and norm == pytest.approx(its_norm, rel=bound["norm"])


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("fast"), 1, "parity:nvlm_h_tiny:fp32", "parity:nvlm_h_tiny:bf16", "waits")


def test_the_same_losses_and_norms(facts):
    alike(facts["parity:nvlm_h_tiny:fp32"], FP32)
    assert facts["parity:nvlm_h_tiny:fp32"]["fast"] != facts["parity:nvlm_h_tiny:fp32"]["plain"]      # it is another path


def test_in_bf16(facts):
    alike(facts["parity:nvlm_h_tiny:bf16"], BF16)


def test_the_host_waits_once_a_step_however_many_rows(facts):
    """The control reads a number, some numbers and a count."""
    waits = facts["waits"]
    assert waits["2"] == waits["6"] == ["tolist"]
    assert waits["control"] == ["aten._local_scalar_dense.default", "tolist", "aten.nonzero.default"]


@pytest.mark.full
class TestMore:
    @pytest.fixture(scope="class")
    def variants(self, tmp_path_factory):
        return measured(tmp_path_factory.mktemp("variants"), 1, "variants")["variants"]

    def test_recomputed_tied_and_frozen_layers_and_every_encoder(self, variants):
        assert len(variants) == 8
        for found in variants.values():
            alike(found, FP32)

    @pytest.mark.parametrize("recipe", ["nvlm_d_tiny", "nvlm_x_tiny"])
    def test_other_architectures(self, tmp_path, recipe):
        found = measured(tmp_path, 1, f"parity:{recipe}:fp32", f"parity:{recipe}:bf16")
        alike(found[f"parity:{recipe}:fp32"], FP32)
        alike(found[f"parity:{recipe}:bf16"], BF16)


@pytest.mark.slow
def test_split_layers_sliced_rows_and_a_split_vocabulary(tmp_path):
    """Cross-entropy of two ranks against Megatron's: losses of size 20, so 20 x 2^-24 for each of a few roundings; gradients of size
    one, in bf16 rounded once by 2^-9."""
    found = measured(tmp_path, 2, "split")["split"]
    alike(found["steps"], FP32)
    assert len(found["loss"]) == 4
    for name, (loss, gradient) in found["loss"].items():
        assert loss < 4e-6 and gradient < (1e-6 if "float32" in name else 2**-8), name
