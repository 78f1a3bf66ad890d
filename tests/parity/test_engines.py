"""DeepSpeed's ZeRO-1, 2 and 3 do what Megatron does, on two ranks and on any rows, and each goes on from the other's checkpoints.

What differs is the order of float32 sums: DeepSpeed adds up gradients of all ranks bucket by bucket, divides by the ranks what the
loss was multiplied by (exact for two), and takes the norm parameter by parameter where Megatron takes it over one buffer. That is what
layouts of one engine differ in too, so the bounds are those of test_layouts.py, derived there. Bfloat16 has a test of its own.

Two engines and their steps cost half a minute of imports and setting up, so one job serves several questions.
"""

import functools
import json
import tempfile
from pathlib import Path

import pytest

from tests.engine.launching import launch
from tests.faults.mixed_rows_ranks import STEPS as MIXED
from tests.parity.engine_ranks import CASES, ENGINES
from tests.parity.test_layouts import LOSS, LOSS_FIRST, NORM

pytest.importorskip("deepspeed")
SCRIPT = Path(__file__).parent / "engine_ranks.py"
pytestmark = pytest.mark.distributed
STEPS, RECIPES = 12, ("nvlm_d_tiny", "nvlm_x_tiny", "nvlm_h_tiny")
# Of few parameters (a frozen language model), Megatron's float32 norm over one buffer is ten times as exact: 4e-7 is the largest seen.
FEW_NORM = 4e-6
CURVES = ("zero1", "zero2", "zero3", "zero1 offload", "zero2 offload", "zero3 offload", "zero2 recompute", "zero3 recompute")


@functools.cache
def run(ranks: int, *words: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        done = launch(SCRIPT, ranks, out, *(word.replace("FOLDER", folder) for word in words), folder=Path(folder), timeout=900)
        assert done.returncode == 0, done.output[-6000:]
        assert not done.survivors
        return json.loads(out.read_text())


def close(expected: list, got: list, where: str, norm_bound: float = NORM) -> None:
    """Steps of [loss, gradient norm, ...] within the bounds."""
    assert len(expected) == len(got)
    for number, ((loss, norm, *_), (other_loss, other_norm, *_)) in enumerate(zip(expected, got, strict=True), start=1):
        assert other_loss == pytest.approx(loss, rel=LOSS_FIRST if number == 1 else LOSS), f"{where}, step {number}"
        assert other_norm == pytest.approx(norm, rel=norm_bound, abs=1e-9), f"{where}, step {number}"


def check_mixed(found: dict, engines: tuple[str, ...]) -> None:
    for name in engines:
        for case, expected in found["mixed"]["megatron"].items():
            for step, one, other in zip(MIXED, expected, found["mixed"][name][case], strict=True):
                close([one], [other], f"{name}: {case}, {step}", FEW_NORM)


def check_order(found: dict) -> None:
    """Gradients come in one order, whatever a row holds: ZeRO-2 adds up what ranks have in the same place of a message. A gate that
    came after its layer's matrices moved the gradient norm by 1e-5 in one step and by 3% in another."""
    for case, by_kind in found.items():
        assert len(by_kind) == 4 and len(by_kind["image"]) > 3, case
        for kind, names in by_kind.items():
            assert names == by_kind["image"], f"{case}, {kind}"


def check_read(found: dict, pair: str, exactly: bool) -> None:
    """The steps after loading are the writer's own, and the weights are bit by bit those of the files."""
    expected, got = found["written"][pair.split(">")[0]][2:], found["read"][pair]
    if exactly:
        assert got["steps"] == expected
    close(expected, got["steps"], pair)
    compared, different = got["weights"]
    assert compared > 40 and not different


@pytest.mark.slow
def test_ranks_of_text_and_of_images_and_a_checkpoint_between_engines():
    """ZeRO-3 where one rank sees no picture at all, and a run that starts with it and goes on with Megatron."""
    found = run(2, "mixed", "X", "megatron,zero3", "--", "order", "X", "--", "written", "FOLDER", "zero3", "--",
                "read", "FOLDER", "zero3>megatron")
    check_order(found["order"])
    check_mixed(found, ("zero3",))
    check_read(found, "zero3>megatron", exactly=False)


@pytest.mark.full
def test_loss_curves():
    found = run(2, "curves", ",".join(RECIPES), str(STEPS), ",".join(("megatron", *CURVES)))["curves"]
    compared = 0
    for name in CURVES:
        for recipe in RECIPES:
            for stage, expected in found["megatron"][recipe].items():
                assert len(expected) == STEPS and len({round(loss, 6) for loss, _ in expected}) > STEPS // 2
                close(expected, found[name][recipe][stage], f"{name}, {recipe}, {stage}")
                compared += 1
    assert compared == len(CURVES) * len(RECIPES) * 2


@pytest.mark.full
@pytest.mark.parametrize("kind", ["tied", "unfrozen"])
def test_zero3_of_another_model(kind):
    """Embeddings that are the output layer's too, which ZeRO-3 has to gather twice; a vision encoder that is trained, and divided."""
    found = run(2, "curves", "nvlm_d_tiny,nvlm_x_tiny", str(STEPS), f"megatron {kind},zero3 {kind}")["curves"]
    for recipe, stages in found[f"megatron {kind}"].items():
        for stage, expected in stages.items():
            close(expected, found[f"zero3 {kind}"][recipe][stage], f"{recipe}, {stage}")


@pytest.mark.full
def test_bfloat16_follows_megatron():
    """Weights and activations in bf16, master weights, gradients' sums and moments in fp32, as on a GPU. A weight has 8 bits, so sums
    in another order land on a neighbour now and then: 2^-9 relative at most each, and a loss is a mean over hundreds of tokens."""
    names = ("zero1 bf16", "zero2 bf16", "zero3 bf16")
    found = run(2, "curves", "nvlm_d_tiny", str(STEPS), ",".join(("megatron bf16", *names)))["curves"]
    for name in names:
        for stage, expected in found["megatron bf16"]["nvlm_d_tiny"].items():
            for (loss, _), (other, _) in zip(expected, found[name]["nvlm_d_tiny"][stage], strict=True):
                assert other == pytest.approx(loss, rel=2**-9), f"{name}, {stage}"


@pytest.mark.full
def test_every_engine_sees_the_same():
    """Bit by bit: the encoder's weights and kernels are the same, and so must be the colours that are taken off its pixels."""
    names = ("megatron bf16", "zero1 bf16", "zero3 bf16")
    found = run(2, "seen", ",".join((*names, "megatron", "zero3")))["seen"]
    assert found["megatron bf16"] == found["zero1 bf16"] == found["zero3 bf16"]
    assert found["megatron"] == found["zero3"] != found["megatron bf16"]


@pytest.mark.full
def test_mixed_rows_of_every_case():
    engines = ("zero1", "zero2", "zero3")
    found = run(2, "mixed", ";".join(CASES), ",".join(("megatron", *engines)), "--", "order", ";".join(CASES))
    check_mixed(found, engines)
    check_order(found["order"])
    assert len(found["order"]) == 2 * len(CASES)


@pytest.mark.full
def test_steps_that_are_not_finite_or_have_no_weight_change_nothing():
    engines = [name for name in ENGINES if name in ("zero1", "zero2", "zero3", "zero1 offload", "zero3 offload")]
    found = run(2, "skipped", ",".join(engines))["skipped"]
    for name in engines:
        plain, (first, *spoiled, last) = found[name]["plain"], found[name]["spoiled"]
        assert [first, last] == plain, name
        assert [skipped for *_, skipped in plain] == [False, False] and [skipped for *_, skipped in spoiled] == [True] * 3, name


@pytest.mark.full
def test_checkpoints_of_every_stage_under_every_other_and_on_one_rank(tmp_path):
    writers = ("megatron", "zero1", "zero2", "zero3", "zero3 offload")
    pairs = [f"{writer}>{reader}" for writer in writers for reader in ("megatron", "zero1", "zero2", "zero3", "zero1 offload")]
    found = run(2, "written", str(tmp_path), ",".join(writers), "--", "read", str(tmp_path), ",".join(pairs))
    for pair in pairs:
        writer, reader = pair.split(">")
        check_read(found, pair, exactly=writer == reader)
    alone = run(1, "read", str(tmp_path), "zero3>zero1,zero2>zero3,megatron>zero3,zero1>megatron")
    assert len(alone["read"]) == 4
    for pair in alone["read"]:
        check_read({"written": found["written"]} | alone, pair, exactly=False)
