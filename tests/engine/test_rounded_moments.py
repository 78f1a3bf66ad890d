"""AdamW's moments in bf16: what rounding costs, and that checkpoints do not know of it."""

import json
from pathlib import Path

import pytest
import torch

from nvlm_train.config.moment_rules import HIGHEST_BETA, moment_error
from nvlm_train.engine.optimizer import AdamW, RoundedAdamW
from nvlm_train.engine.rounding import noises, rounded
from tests.engine.launching import launch

BETAS = (0.9, 0.98)
# A step is as long as the first moment, over the root of the second. Over many weights errors cancel: this is more than what is left.
LENGTH = moment_error(BETAS[0]) + moment_error(BETAS[1]) / 2


def steps(kind: type, gradients, betas=BETAS):
    """A weight of 1 000 numbers and its state after a step with each gradient."""
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 1000))
    optimizer = kind([weight], lr=1e-2, weight_decay=0.1, betas=betas, eps=1e-8)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach(), optimizer.state[weight]


def noise(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1000, generator=generator) for _ in range(count)]


def test_a_first_step_is_exact_and_what_is_kept_is_one_of_two_neighbours():
    exact, bf16 = (steps(kind, noise(1)) for kind in (AdamW, RoundedAdamW))
    assert torch.equal(exact[0], bf16[0])
    for name in ("exp_avg", "exp_avg_sq"):
        assert exact[1][name].dtype == torch.float32 and bf16[1][name].dtype == torch.bfloat16
        off = (bf16[1][name].float() / exact[1][name] - 1).abs()
        assert 2**-9 < float(off.max()) < 2**-7


def test_rounding_is_right_on_average_and_the_same_every_time():
    """100,000 times the same number, a third of the way between two neighbours; the mean's deviation is 2^-7 x sqrt(2/9 / 100,000)."""
    gradient = torch.cat(noise(100))
    for noised in noises(gradient, 7):
        assert 0 <= int(noised.min()) and int(noised.max()) < 2**16 and torch.equal(noised, noised)
        for sign in (1, -1):
            found = rounded(torch.full_like(gradient, sign * (1 + 2**-7 / 3)), noised)
            assert set(found.tolist()) == {sign * 1.0, sign * (1 + 2**-7)} and torch.equal(found, found.bfloat16().float())
            assert abs(float(found.double().mean()) - sign * (1 + 2**-7 / 3)) < 5 * 2**-7 * (2 / 9 / 1e5) ** 0.5
    again, later = noises(gradient, 7), noises(gradient, 8)
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in zip(again, noises(gradient, 7), later))
    assert len({int(noises(torch.zeros(1), step)[1]) for step in range(1000)}) > 950, "a gradient of zero is rounded otherwise each step"


@pytest.mark.parametrize("beta", [0.95, 0.98, 0.999])
def test_a_moment_comes_to_where_rounding_to_nearest_would_not(beta):
    """Squared gradients of 1, then of 1.44: off by at most five times the error that the rule allows, itself a tenth at most."""
    first, second = ([torch.full((1000,), size)] * count for size, count in ((1.0, 100), (1.2, 6000)))
    _, state = steps(RoundedAdamW, [*first, *second], (0.9, beta))
    off = float((state["exp_avg_sq"].float() / 1.44 - 1).abs().max())
    assert off < 5 * moment_error(beta) and moment_error(beta) < 0.1 and beta < HIGHEST_BETA
    nearest = torch.ones((), dtype=torch.bfloat16)
    for _ in range(6000):
        nearest = (beta * nearest.float() + (1 - beta) * 1.44).bfloat16()
    assert beta < 0.98 or float(nearest) < 1.44 * 0.9


def test_a_regression_learns_as_fast():
    """200 steps: the loss that is left differs by no more than steps of another length would make it."""
    inputs, target = torch.stack(noise(64)), torch.stack(noise(72)[-8:])[:, :64].T
    losses = {}
    for kind in (AdamW, RoundedAdamW):
        weight = torch.nn.Parameter(torch.zeros(1000, 8))
        optimizer, losses[kind] = kind([weight], lr=1e-3, weight_decay=0.0, betas=BETAS, eps=1e-8), []
        for _ in range(200):
            loss = ((inputs @ weight - target) ** 2).mean()
            weight.grad = torch.autograd.grad(loss, weight)[0]
            optimizer.step()
            losses[kind].append(float(loss.detach()))
    first = losses[AdamW][0]
    assert losses[AdamW][-1] < first / 100 and losses[AdamW] != losses[RoundedAdamW]
    for exact, bf16 in zip(losses[AdamW], losses[RoundedAdamW], strict=True):
        assert abs(exact - bf16) <= LENGTH * max(first - exact, 1e-3 * first)


@pytest.mark.distributed
@pytest.mark.full
def test_200_steps_of_a_model_and_checkpoints_either_way(tmp_path):
    done = launch(Path(__file__).with_name("rounded_ranks.py"), 2, tmp_path / "found.json", folder=tmp_path, timeout=900)
    assert done.returncode == 0, done.output[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    exact, rounded = found["fp32"]["losses"], found["bf16"]["losses"]
    assert len(exact) == len(rounded) == 200 and exact[-1] < exact[0] - 1 and exact != rounded
    assert max(abs(a - b) for a, b in zip(exact, rounded)) < LENGTH * (exact[0] - min(exact))
    for kind, other in (("fp32", "bf16"), ("bf16", "fp32")):
        assert found[kind]["saved"] == {"exp_avg": "float32", "exp_avg_sq": "float32"}
        assert found[kind]["kept"] == {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[kind]
        # Under the other dtype the same moments, rounded or as they are, so the next loss is that of the undisturbed run.
        assert found[kind]["resumed moments off"] <= (2**-8 if other == "bf16" else 0)
        assert found[kind]["resumed"][0] == found[kind]["later"][0]
        assert found[kind]["resumed"][1] == pytest.approx(found[kind]["later"][1], rel=1e-3)
