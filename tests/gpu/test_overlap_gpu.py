"""Messages beside the computing over NCCL, and rounding at random on a GPU. Run where there are GPUs; the first needs two."""

import json

import pytest
import torch

from tests.engine.launching import launch
from tests.parity.test_overlap import SCRIPT

pytestmark = [pytest.mark.distributed, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("words", [(), ("model.dtype=fp32",)], ids=["bf16", "fp32"])
def test_two_replicas_over_nccl(tmp_path, words):
    """Kernels of a GPU may add in any order: the same to rounding, 2^-8 in bf16 over some hundred tokens. A hang is a failure."""
    done = launch(SCRIPT, 2, tmp_path / "found.json", "D,X", "run.device=cuda", *words, folder=tmp_path, timeout=400)
    assert done.returncode == 0, done.output[-4000:]
    for by_overlap in json.loads((tmp_path / "found.json").read_text()).values():
        beside, after = by_overlap["true"], by_overlap["false"]
        assert beside["losses"] == pytest.approx(after["losses"], rel=1e-4 if words else 1e-2)
        assert beside["beside"] == [0, *[beside["groups"]] * 5]
        assert beside["later"][0] == pytest.approx(beside["resumed"][0], rel=1e-4 if words else 1e-2)


def test_rounding_is_that_of_the_cpu():
    from nvlm_train.engine.rounding import noises, rounded

    gradient, wide = torch.randn(2, 100_000)
    for here, there in zip(noises(gradient, 9), noises(gradient.cuda(), 9), strict=True):
        assert torch.equal(here, there.cpu()) and torch.equal(rounded(wide, here), rounded(wide.cuda(), there).cpu())


def test_moments_in_bf16_follow_fp32_with_torchs_fused_kernel():
    from nvlm_train.engine.optimizer import AdamW, RoundedAdamW

    weights = {}
    for kind in (AdamW, RoundedAdamW):
        weight = torch.nn.Parameter(torch.zeros(10_000, device="cuda"))
        optimizer, random = kind([weight], lr=1e-3, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-8), torch.Generator("cuda").manual_seed(1)
        for _ in range(100):
            weight.grad = 1 + torch.randn(10_000, device="cuda", generator=random)
            optimizer.step()
        weights[kind] = weight.detach()
    # Each step errs by 2% (`config.moment_rules`, both moments), their sum by less.
    assert float((weights[RoundedAdamW] / weights[AdamW] - 1).abs().mean()) < 0.02
