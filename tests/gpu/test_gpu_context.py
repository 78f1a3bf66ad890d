"""Context parallelism's one kernel question: the variable-length flash call lays its causal mask to the lower right, forward and backward.

Torch's documentation does not say so of `varlen_attn`; flash attention's does. All ranks' parts are computed on one GPU.
"""

import pytest
import torch

from tests.model.context_parts import attended_by_parts, shares

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.parametrize("edges, ranks", [([0, 2048], 2), ([0, 100, 357, 1600, 2048], 4), ([0, 1030, 1536], 3)])
def test_flash_attention_of_parts_is_attention_of_the_row(edges, ranks, monkeypatch):
    """bf16 against fp32. Outputs of size one to a few 2^-8; a gradient adds up as many rounded terms as queries read a key, with signs
    that mostly cancel: each to 2% of the largest. A mask laid to the upper left would be off by the whole of it."""
    from nvlm_train.model.attention import _by_segment, _causal_arguments

    random = torch.Generator("cuda").manual_seed(0)
    q, k, v, weight = (torch.randn(edges[-1], heads, 64, generator=random, device="cuda") for heads in (8, 2, 2, 8))
    whole = [x.bfloat16().float().requires_grad_() for x in (q, k, v)]
    expected = _by_segment(*whole, edges, None)
    (expected * weight).sum().backward()
    split = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    got = attended_by_parts(*split, shares(edges, ranks), "varlen", _causal_arguments(), monkeypatch)
    (got.float() * weight).sum().backward()
    assert float((got.float() - expected).abs().max()) < 0.03
    for mine, theirs in zip(split, whole, strict=True):
        assert float((mine.grad.float() - theirs.grad).abs().max()) < 0.02 * float(theirs.grad.abs().max())
