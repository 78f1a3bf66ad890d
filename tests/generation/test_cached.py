"""Answers with a KV cache are those without, whatever the layout, and whatever else is answered beside."""

import functools
import json
import tempfile
from pathlib import Path

import pytest

from tests.engine.launching import launch

SCRIPT = Path(__file__).parent / "generation_ranks.py"
ARCHITECTURES = ("nvlm_d", "nvlm_x", "nvlm_h")
TWO = ("tensor 2, sequence", "pipeline 2")      # in the core suite; `make test-all` adds MORE
MORE = ("data 2", "tensor 2", "pipeline 2, virtual 2", "context 2")
NEAR = 1e-4         # of two logits as close as this, rounding may choose either
pytestmark = pytest.mark.distributed


@functools.cache
def found(ranks: int, *layouts: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        done = launch(SCRIPT, ranks, out, ";".join(ARCHITECTURES), ";".join(layouts), folder=Path(folder), timeout=400)
        assert done.returncode == 0, done.output[-6000:]
        assert not done.survivors
        return json.loads(out.read_text())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_is_uncached(architecture):
    one = found(1, "one")[architecture]["one"]
    assert min(one["lead"]) > NEAR, "two tokens were as good as equal: the test would allow either"
    assert one["greedy"] == one["uncached"]
    assert len(set(map(tuple, one["greedy"]))) > len(one["greedy"]) / 2 and max(map(len, one["greedy"])) == 12
    assert max(one["prompts"]) > 3 * min(one["prompts"]) and 0 in one["tiles"] and max(one["tiles"]) > 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_depend_on_the_pictures(architecture):
    """Or else a memory that is read wrongly would not be noticed."""
    one = found(1, "one")[architecture]["one"]
    changed = [black != seen for black, seen, tiles in zip(one["black"], one["greedy"], one["tiles"], strict=True) if tiles]
    assert sum(changed) > len(changed) / 2
    assert all(black == seen for black, seen, tiles in zip(one["black"], one["greedy"], one["tiles"], strict=True) if not tiles)


@pytest.mark.parametrize("layout", TWO)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layout_writes_the_same(architecture, layout):
    check(architecture, layout, found(2, *TWO))


@pytest.mark.full
@pytest.mark.parametrize("layout", MORE)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_more_layouts_write_the_same(architecture, layout):
    check(architecture, layout, found(2, *MORE))


def check(architecture: str, layout: str, answers: dict) -> None:
    one, other = found(1, "one")[architecture]["one"], answers[architecture][layout]
    assert other["greedy"] == one["greedy"]
    if layout != "data 2":
        assert other["drawn"] == one["drawn"] != one["greedy"]


@pytest.mark.full
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_zero_3_writes_the_same(architecture):
    """Two replicas whose weights are divided between them, which must therefore go in step."""
    pytest.importorskip("deepspeed")
    one = found(1, "one")[architecture]["one"]
    assert found(2, "zero 3")[architecture]["zero 3"]["greedy"] == one["greedy"]
