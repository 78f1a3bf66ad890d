"""The encoder's fingerprint names its weights under every layout, dummy heads or not; and the encoder alone has the same."""

import json
from pathlib import Path

import pytest

from tests.engine.launching import launch


@pytest.mark.full
@pytest.mark.distributed
def test_fingerprint_is_the_same_under_every_layout(tmp_path):
    """Five heads are six on two ranks and eight on four; the layout of two ranks is pipelined as well."""
    out = tmp_path / "found.json"
    done = launch(Path(__file__).with_name("frozen_ranks.py"), 4, out, "nvlm_d_tiny_6b", "1,2,4", folder=tmp_path, timeout=300)
    assert done.returncode == 0, done.output[-4000:]
    found = json.loads(out.read_text())
    same = {found[f"{name} {tensor}"] for name in ("whole", "encoder") for tensor in (1, 2, 4)}
    changed = {found[f"changed {tensor}"] for tensor in (1, 2, 4)}
    assert len(same) == len(changed) == 1 and len(found) == 10
    assert len({*same, *changed, found["seed"]}) == 3
    assert all(len(text) == 16 and int(text, 16) for text in found.values())
