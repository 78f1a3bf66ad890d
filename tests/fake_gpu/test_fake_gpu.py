"""Training on a GPU, as far as it can be seen without one: every line that runs there runs, on memory that is not the host's, and the
host waits for the device once a step. See `gpu.py` for what is real; speed is not."""

import json
from pathlib import Path

import pytest

from tests.engine.launching import launch
from tests.fake_gpu import gpu
from tests.parity.test_layouts import LOSS, NORM, differences
from tests.parity.test_layouts import SCRIPT as PARITY

pytestmark = [pytest.mark.distributed, pytest.mark.skipif(gpu.problem() is not None, reason=f"no fake GPU: {gpu.problem()}")]
HERE = Path(__file__).parent


def _found(folder: Path, script: Path, *arguments: object, ranks: int = 1, fake_gpu: bool = True, timeout: int = 400) -> dict:
    out = folder / f"{script.stem}-{ranks}-{fake_gpu}.json"
    done = launch(script, ranks, out, *arguments, folder=folder, timeout=timeout, fake_gpu=fake_gpu)
    assert done.returncode == 0, done.output[-4000:]
    return json.loads(out.read_text())


def test_it_is_strict_where_a_gpu_is(tmp_path):
    facts = _found(tmp_path, HERE / "device_facts.py")
    assert facts["device"] == "cuda:0" and facts["graph"] == ["cuda:0", [1, 2, 1]]
    assert facts["through a view"] == [[1, 1], [2, 2], [1, 1]] and facts["out"] == [0, 1, 2, 3, 4]
    assert {name: said[:24] for name, said in facts["refused"].items()} == {
        "both memories": "Expected all tensors to ", "numpy": "can't convert cuda:0 dev", "another GPU": "memory on cuda:5, but th",
        "flash in fp32": "FlashAttention only supp", "a product of fp32 with out_dtype": "mm with out_dtype takes ",
        "fp8 rows": "_scaled_mm takes a row-m"}
    assert facts["counted"] == {
        "nothing": {}, "item": {"read one number": 1}, "to host": {"copy to the host": 1},
        "pageable": {"copy from memory that is not pinned": 1}, "nonzero": {"aten::nonzero": 1}, "mask": {"aten::index": 1, "aten::nonzero": 1}}
    assert facts["as an error"] == "the host waits for the device: copy to the host"
    # bf16 out of fp32: half a step of 2^-8 of a number, and of the few that a gradient of a group adds up.
    assert all(difference < 2**-7 for difference in facts["attention"].values()), facts["attention"]


def test_the_host_waits_once_a_step(tmp_path):
    """Of D, X and H, both stages: for what the report says. All else is queued, and rows are sent from pinned memory."""
    found = _found(tmp_path, HERE / "step_ranks.py")
    assert len(found) == 6
    for name, run in found.items():
        assert "attention varlen" in run["plan"] and "element-wise compiled" in run["plan"] and "gradients product" in run["plan"]
        assert [step["waits"] for step in run["steps"]] == [{"copy to the host": 1}] * 3, name
        assert run["steps"][-1]["loss"] < run["steps"][0]["loss"], name


LAYOUTS = [pytest.param(2, ("layout.overlap=true",), id="DP2 with overlap"),
           pytest.param(2, ("layout.tensor=2", "layout.sequence=true", "layout.share_tiles=true"), id="TP2", marks=pytest.mark.full),
           pytest.param(2, ("layout.pipeline=2",), id="PP2", marks=pytest.mark.full),
           pytest.param(2, ("layout.context=2",), id="CP2", marks=pytest.mark.full)]


@pytest.mark.parametrize("ranks, layout", LAYOUTS)
def test_a_layout_of_gpus_trains_like_one_cpu(tmp_path, ranks, layout):
    """In fp32, both stages: the bounds of tests/parity. Each process has a GPU of its own number, and may touch no other."""
    words = ("nvlm_d_tiny,nvlm_x_tiny", 6, "model.dtype=fp32")
    alone, together = _found(tmp_path, PARITY, *words, fake_gpu=False), _found(tmp_path, PARITY, *words, *layout, ranks=ranks)
    for recipe, stages in alone.items():
        for stage, steps in stages.items():
            for field, bound in (("loss", LOSS), ("grad_norm", NORM)):
                assert max(differences(steps, together[recipe][stage], field)) < bound, (recipe, stage, field)


@pytest.mark.full
@pytest.mark.parametrize("layout", [("layout.context=2",), ("layout.tensor=2", "layout.sequence=true"), ("layout.overlap=true",)], ids=" ".join)
def test_bf16_over_flash_attention_on_two(tmp_path, layout):
    """Curves in bf16: each number is rounded to 2^-9, at other places on two ranks; a hundredth after a few steps is a slip."""
    words = ("nvlm_d_tiny,nvlm_x_tiny", 6, "model.dtype=bf16")
    alone, together = _found(tmp_path, PARITY, *words), _found(tmp_path, PARITY, *words, *layout, ranks=2)
    for recipe, stages in alone.items():
        for stage, steps in stages.items():
            assert max(differences(steps, together[recipe][stage], "loss")) < 1e-2, (recipe, stage)
