"""What the fake GPU refuses, counts and computes; `test_fake_gpu` asserts."""

import itertools
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from tests.fake_gpu import gpu

EDGES = [0, 5, 5, 12, 32]


def refused(action) -> str:
    """What an action's error says; empty if there is none."""
    try:
        action()
    except (RuntimeError, TypeError) as error:
        return str(error).splitlines()[0]
    return ""


def counted(device, action) -> dict[str, int]:
    device.forget()
    action()
    return device.waits()


def attention() -> dict[str, float]:
    """Largest differences of the fake flash attention, forward and backward, to torch's own in float64 a segment at a time."""
    random = torch.Generator().manual_seed(0)
    q, k, v, weight = (torch.randn(EDGES[-1], heads, 16, generator=random).bfloat16() for heads in (4, 2, 2, 4))
    ours = [x.cuda().requires_grad_() for x in (q, k, v)]
    edges = torch.tensor(EDGES, dtype=torch.int32).cuda()

    out = varlen_attn(*ours, edges, edges, 20, 20, window_size=(-1, 0), enable_gqa=True)
    grads = torch.autograd.grad((out.float() * weight.cuda().float()).sum(), ours)
    theirs = [x.double().requires_grad_() for x in (q, k, v)]
    parts = [F.scaled_dot_product_attention(*(x[a:b].transpose(0, 1) for x in theirs), is_causal=True, enable_gqa=True).transpose(0, 1)
             for a, b in itertools.pairwise(EDGES) if a < b]
    expected = torch.cat(parts)
    wanted = torch.autograd.grad((expected * weight.double()).sum(), theirs)
    pairs = {"out": (out, expected)} | dict(zip(("q", "k", "v"), zip(grads, wanted, strict=True), strict=True))
    return {name: float((a.double().cpu() - b).abs().max() / b.abs().max()) for name, (a, b) in pairs.items()}


def main() -> None:
    device = gpu.enable()
    here, there = torch.ones(3, 2), torch.ones(3, 2, device="cuda")
    pinned = torch.ones(1000).pin_memory()
    halves = torch.ones(8, 16, device="cuda", dtype=torch.bfloat16)
    view = there[1]
    view += 1
    grown = torch.empty(0, device="cuda")
    torch.arange(5, out=grown)
    leaf = torch.ones(3, requires_grad=True, device="cuda")
    (leaf * there[:, 0]).sum().backward()
    facts = {
        "device": str(there.device), "graph": [str(leaf.grad.device), leaf.grad.tolist()], "through a view": there.tolist(),
        "out": grown.tolist(),
        "refused": {
            "both memories": refused(lambda: here + there),
            "numpy": refused(lambda: there.numpy()),
            "another GPU": refused(lambda: torch.ones(3, device="cuda:5")),
            "flash in fp32": refused(lambda: varlen_attn(
                *[halves.float().view(8, 2, 8)] * 3, *[torch.tensor([0, 8], dtype=torch.int32).cuda()] * 2, 8, 8)),
            "a product of fp32 with out_dtype": refused(lambda: torch.mm(halves.float(), halves.float().t(), out_dtype=torch.float32)),
            "fp8 rows": refused(lambda: torch._scaled_mm(
                halves.to(torch.float8_e4m3fn), torch.ones(16, 16, device="cuda").to(torch.float8_e4m3fn),
                *[torch.ones((), device="cuda")] * 2))},
        "counted": {
            "nothing": counted(device, lambda: (there * 2 + there.sum(), pinned.to("cuda", non_blocking=True))),
            "item": counted(device, lambda: there.sum().item()),
            "to host": counted(device, there.cpu),
            "pageable": counted(device, here.cuda),
            "nonzero": counted(device, there.nonzero),
            "mask": counted(device, lambda: there[there > 0])},
        "attention": attention()}
    device.refuse(True)
    facts["as an error"] = refused(there.cpu)
    device.refuse(False)
    Path(sys.argv[1]).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
