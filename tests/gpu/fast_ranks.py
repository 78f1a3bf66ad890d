"""The fast path on a GPU, measured and written as JSON; `test_fast_kernels` asserts."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from nvlm_train.config.compose import compose
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.model.elementwise import SwiGLU, rotate
from nvlm_train.model.loss import token_losses
from tests.model.model_checks import step
from tests.model.rows import T, make_row


def rows_without_waiting(engine: MegatronEngine) -> int:
    """Rows that went forward and backward while waiting was an error."""
    rows = [make_row("nvlm_h", number, "text" if number == 1 else "image") for number in range(4)]
    step(engine, *rows)
    one = torch.ones((), dtype=torch.int, device=engine.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        reports = engine._run_schedule(rows, lambda row, losses: (engine._sums(row, losses)[0], one, {"losses": losses.detach()}))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return len(reports)


def parts() -> dict[str, float]:
    """Largest differences of compiled parts in bf16 to float64."""
    random = torch.Generator("cuda").manual_seed(0)

    def numbers(*shape):
        return torch.randn(*shape, generator=random, device="cuda").bfloat16()

    x, q, angles = numbers(512, 1, 512), numbers(512, 8, 64), numbers(512, 32).float()
    gate, up = x.double().chunk(2, -1)
    left, right = q.double().chunk(2, -1)
    cos, sin = angles[:, None].double().cos(), angles[:, None].double().sin()
    turned = torch.cat((left * cos - right * sin, right * cos + left * sin), -1)
    logits, labels = (numbers(64, 32768) * 2).requires_grad_(), torch.arange(64, device="cuda")
    wide = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(wide, labels, reduction="none")
    losses = token_losses(logits * 1, labels, dist.group.WORLD, compiled=True)
    (gradient,), (wanted,) = torch.autograd.grad(losses.sum(), logits), torch.autograd.grad(expected.sum(), wide)
    pairs = {"swiglu": (SwiGLU(None)(x), F.silu(gate) * up), "rotate": (rotate(q, angles.cos(), angles.sin()), turned),
             "loss": (losses, expected), "loss gradient": (gradient, wanted)}
    return {name: float((got.double() - other).abs().max()) for name, (got, other) in pairs.items()}


def main() -> None:
    engine = MegatronEngine(compose(["recipe=nvlm_h_tiny", "stage=sft", f"data.pack_tokens={T}", "train.trainable=[connector,language]",
                                     "model.dtype=bf16"])[0])
    facts = {"plan": engine.kernels.line(), "lacking": list(engine.kernels.lacking), "parts": parts(),
             "rows_without_waiting": rows_without_waiting(engine)}
    Path(sys.argv[1]).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
