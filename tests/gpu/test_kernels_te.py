"""Transformer Engine, apex and fp8 against torch, on a GPU that has them: `pytest tests/gpu/test_kernels_te.py -m "" -rs`.

How far bf16 may be off. A number that is rounded to bf16 (8 bits of mantissa) is off by at most 2^-9 of itself, evenly spread, so
by 2^-9 / sqrt(3) in the root mean square. k roundings on the way from inputs to result, each of them independent and each carried
over with about its own share of the result's size, give sqrt(k / 3) * 2^-9. `bound(k)` is twice that. What must still fail is far
above: a wrong epsilon, a neglected weight or a sample that sees its neighbour each change a tensor by several per cent.
"""

import importlib.util
import inspect
import json
import math
from pathlib import Path

import pytest
import torch

from tests.engine.launching import launch
from tests.kernels import fake_te
from tests.kernels.te_signatures import SIGNATURES

GPU = torch.cuda.is_available()
HAS = {name: GPU and importlib.util.find_spec(name) is not None for name in ("transformer_engine", "amp_C")}
pytestmark = pytest.mark.distributed
needs_te = pytest.mark.skipif(not HAS["transformer_engine"], reason="needs an NVIDIA GPU and Transformer Engine")
needs_apex = pytest.mark.skipif(not HAS["amp_C"], reason="needs an NVIDIA GPU and NVIDIA's apex with its CUDA extensions")
needs_fp8 = pytest.mark.skipif(not HAS["transformer_engine"] or torch.cuda.get_device_capability() < (8, 9),
                               reason="needs Transformer Engine and a GPU of compute capability 8.9 or higher")
SCRIPT = Path(__file__).with_name("te_ranks.py")
TRAIN = Path(__file__).parents[1] / "parity" / "train_ranks.py"


def bound(roundings: int) -> float:
    return 2 * math.sqrt(roundings / 3) * 2**-9


def measure(folder: Path, *checks: str) -> dict:
    done = launch(SCRIPT, 1, folder / "facts.json", *checks, folder=folder, timeout=300)
    assert done.returncode == 0 and not done.survivors, done.output[-4000:]
    return json.loads((folder / "facts.json").read_text())


@needs_te
@pytest.mark.parametrize("name", SIGNATURES)
def test_the_installed_package_has_what_we_use(name):
    for module in ("optimizers", "attention.rope"):
        importlib.import_module(f"transformer_engine.pytorch.{module}")
    found = importlib.import_module("transformer_engine")
    for part in name.split("."):
        found = getattr(found, part)
    assert set(inspect.signature(fake_te.named(name)).parameters) <= set(inspect.signature(found).parameters)


@needs_te
def test_norm_inside_the_linear_layer(tmp_path):
    """Output: norm and product, 2 roundings. Gradients: of the norm's output and the norm itself again, and the result:
    4 at most."""
    found = measure(tmp_path, "norm_and_linear")["norm_and_linear"]
    assert found["names"] == ["layer_norm_weight", "weight"]
    output, *gradients = found["te"]
    assert output < bound(2) and max(gradients) < bound(4)


@needs_te
def test_rotary_positions(tmp_path):
    """In fp32 inside: one rounding, of the result."""
    assert max(measure(tmp_path, "rope")["rope"]["te"]) < bound(1)


@needs_te
def test_packed_attention_and_its_isolation(tmp_path):
    """Probabilities and result are rounded, 2; backwards also the softmax's gradient and the saved result, 5 at most. A sample
    that was changed changes no bit of the others'."""
    found = measure(tmp_path, "attention")["attention"]
    output, *gradients = found["te"]
    assert output < bound(2) and max(gradients) < bound(5)
    assert found["changed"] == [False, True, False]


@needs_apex
def test_apex_norm(tmp_path):
    """One rounding each; the weight's gradient is summed in fp32."""
    assert max(measure(tmp_path, "apex_norm")["apex_norm"]["apex"]) < bound(1)


@pytest.mark.skipif(not any(HAS.values()), reason="needs an NVIDIA GPU and Transformer Engine or apex")
def test_the_fused_adams_are_one_formula(tmp_path):
    """fp32 has 24 bits: twenty steps of a dozen operations each on numbers of size one (a thousand steps) stay within 20 x 12 x
    2^-24 of them, 0.015 steps. L2 regularisation in place of decoupled decay would differ by whole steps."""
    found = measure(tmp_path, "adam")["adam"]
    assert len(found) > 1
    for facts in found.values():
        assert facts["steps"] < 20 * 12 * 2**-24 * 1000
        assert facts["state"] == ["exp_avg", "exp_avg_sq"] and facts["group"] == 20


@needs_te
def test_checkpoints_are_exchanged(tmp_path):
    """All weights bit for bit; the next loss to bf16's precision (see test_gpu)."""
    for facts in measure(tmp_path, "exchange")["exchange"].values():
        assert facts["equal"] and facts["loaded"] == pytest.approx(facts["undisturbed"], rel=0.02)


def curve(folder: Path, name: str, steps: int, *overrides: str) -> list[float]:
    out = folder / f"{name}.json"
    done = launch(TRAIN, 1, out, "nvlm_d_tiny", steps, "model.dtype=bf16", *overrides, folder=folder, timeout=500)
    assert done.returncode == 0, done.output[-4000:]
    stages = json.loads(out.read_text())["nvlm_d_tiny"]
    return [row["loss"] for rows in stages.values() for row in rows]


@needs_te
def test_training_follows_torch(tmp_path):
    expected, found = (curve(tmp_path, name, 20, f"model.kernels={name}") for name in ("torch", "te"))
    assert found == pytest.approx(expected, rel=0.02)


@needs_apex
def test_training_with_apex_follows_torch(tmp_path):
    expected, found = (curve(tmp_path, name, 20, f"model.kernels={name}") for name in ("torch", "apex"))
    assert found == pytest.approx(expected, rel=0.02)


@needs_fp8
@pytest.mark.full
@pytest.mark.parametrize("recipe", ["current", "delayed"])
def test_fp8_learns_what_bf16_learns(tmp_path, recipe):
    """Three hundred steps of each stage. No bound follows from fp8's four bits of mantissa alone; the criterion is that of the
    last twenty losses' mean the fall from the first loss is at least nine tenths of bf16's."""
    curves = [curve(tmp_path, name, 300, "model.kernels=te", *more)
              for name, more in (("bf16", ()), ("fp8", (f"model.fp8={recipe}",)))]
    falls = [values[300] - sum(values[-20:]) / 20 for values in curves]     # the second stage, which trains the language model
    assert falls[0] > 0 and falls[1] > 0.9 * falls[0]
