"""What only a GPU can show of the fast path: that its kernels compile there, that products add up in fp32, and that rows go through without
the host waiting."""

import json
from pathlib import Path

import pytest
import torch

from tests.engine.launching import launch

pytestmark = [pytest.mark.distributed, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
RANKS = Path(__file__).with_name("fast_ranks.py")


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fast")
    done = launch(RANKS, 1, folder / "facts.json", folder=folder, timeout=600)
    assert done.returncode == 0, done.output[-4000:]
    return json.loads((folder / "facts.json").read_text())


def test_this_machine_takes_the_fast_path(facts):
    """With a torch that has the calls (>= 2.11) and Triton; an older one says what it lacks, which is then to be read here."""
    assert facts["lacking"] == [] and "element-wise compiled" in facts["plan"] and "weight gradients product" in facts["plan"]


def test_rows_go_through_without_the_host_waiting(facts):
    """torch.cuda.set_sync_debug_mode("error") around forward and backward of four rows, after a step that compiled them."""
    assert facts["rows_without_waiting"] == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_gradient_is_added_in_fp32(dtype):
    """4,096 terms of size up to 10 in fp32 sums: 4096 x 10 x 2^-24 = 0.0025 at worst; one rounding to bf16 would be 0.25. (fp32 products
    are made in fp32, not TF32, by torch's default.)"""
    from nvlm_train.model.weight_gradient import add_product

    random = torch.Generator("cuda").manual_seed(0)
    gradient, x = (torch.randn(4096, width, generator=random, device="cuda").to(dtype) for width in (256, 512))
    total = torch.full((256, 512), 3.0, device="cuda")
    add_product(total, gradient, x)
    assert float((total - 3 - gradient.double().t() @ x.double()).abs().max()) < 0.0025


def test_compiled_parts_agree_with_float64(facts):
    """bf16 in and out: computed in fp32 and rounded once, 2^-9 of values up to 8."""
    assert set(facts["parts"]) == {"swiglu", "rotate", "loss", "loss gradient"}
    assert all(difference < 2**-9 * 8 for difference in facts["parts"].values()), facts["parts"]


def test_grouped_queries_without_copies():
    """torch's own grouped form against copies of keys and values, forward and backward; bf16, a few roundings of numbers of size one."""
    from nvlm_train.model import attention

    if "enable_gqa" not in attention._arguments(attention.varlen_attn):
        pytest.skip("this torch has no grouped form")
    random = torch.Generator("cuda").manual_seed(0)
    cu = torch.tensor([0, 100, 357, 512], dtype=torch.int32, device="cuda")
    found = []
    for copies in (False, True):
        q, k, v = (torch.randn(512, heads, 64, generator=random.manual_seed(heads), device="cuda", dtype=torch.bfloat16).requires_grad_()
                   for heads in (8, 2, 2))
        wide = (k.repeat_interleave(4, 1), v.repeat_interleave(4, 1)) if copies else (k, v)
        out = attention.grouped_varlen(q, *wide, cu, cu, 257, 257, **attention._causal_arguments())
        found.append((out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))))
    for one, other in zip(*found, strict=True):
        assert float((one.float() - other.float()).abs().max()) < 0.06 * float(other.float().abs().max())
