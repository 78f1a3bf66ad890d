"""The pipeline's picture: every work where and as long as the schedule played it."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from nvlm_train.config.compose import compose
from nvlm_train.config.request import Assume
from nvlm_train.planning.devices import GPUS, Cluster
from nvlm_train.planning.plan import Plan, bench_of
from nvlm_train.planning.samples import assumed_samples
from nvlm_train.planning.timeline import HEAD, LANE, LEFT, RIGHT, WIDTH, draw

SVG = "{http://www.w3.org/2000/svg}"
UNEVEN = ("recipe=nvlm_d_72b", "stage=sft")
VIRTUAL = ("recipe=nvlm_d_34b", "stage=sft", "layout.pipeline=2", "layout.virtual=2", "layout.first_stage_layers=null")


def plan_of(words) -> Plan:
    run = compose([*words, "model.tokenizer=tiny"])[0]
    return Plan(run, bench_of(run, Cluster(GPUS["h100"], 16, 8), assumed_samples(run, Assume(), 300)))


@pytest.fixture(scope="module", params=[UNEVEN, VIRTUAL], ids=["uneven", "virtual"])
def drawn(request):
    plan = plan_of(request.param)
    return plan, ET.fromstring(draw([("as asked", plan)]))


def lanes(plan: Plan, root: ET.Element) -> list[list[tuple[str, float, float]]]:
    """(class, left, right) in seconds, of each stage's blocks."""
    scale = (WIDTH - LEFT - RIGHT) / plan.time.seconds
    found: dict[float, list] = {}
    for block in root.iter(f"{SVG}rect"):
        if float(block.get("height")) == LANE:
            wide = float(block.get("width"))
            whole = wide + min(1, wide / 9)      # a tenth, or a pixel, is left free before the next
            begin = (float(block.get("x")) - LEFT) / scale
            found.setdefault(float(block.get("y")), []).append((block.get("class"), begin, begin + whole / scale))
    return [found[top] for top in sorted(found)]


def test_every_work_is_drawn_where_it_was_played(drawn):
    plan, root = drawn
    played, pixel = plan.time.pipeline, plan.time.seconds / (WIDTH - LEFT - RIGHT)
    stages = lanes(plan, root)
    assert len(stages) == plan.run.layout.pipeline
    for stage, blocks in enumerate(stages):
        works = [block for block in blocks if block[0].split()[0] in ("forward", "backward")]
        expected = [span for span in played.spans[stage] if span.end > span.begin]
        assert len(works) == len(expected) == len(plan.step.rows) * 2 * plan.run.layout.virtual
        for (_, begin, end), span in zip(works, expected, strict=True):
            assert begin == pytest.approx(span.begin, abs=pixel / 50) and end == pytest.approx(span.end, abs=pixel / 20)
        assert sum(end - begin for _, begin, end in works) == pytest.approx(played.busy[stage], abs=pixel / 20 * len(works))
        idle, update = blocks[0], blocks[-1]
        assert idle[0] == "idle" and idle[2] == pytest.approx(played.seconds, abs=pixel)
        assert update[0] == "update" and update[2] <= plan.time.seconds + pixel


def test_works_of_a_stage_do_not_overlap_and_rows_go_in_order(drawn):
    plan, _ = drawn
    for spans in plan.time.pipeline.spans:
        assert all(later.begin >= earlier.end for earlier, later in pairwise(spans))
    last = plan.run.layout.pipeline * plan.run.layout.virtual - 1
    forwards = {(span.piece, span.row): span for spans in plan.time.pipeline.spans for span in spans if span.kind == 0}
    assert all(forwards[piece + 1, row].begin >= forwards[piece, row].end for piece, row in forwards if piece < last)


def test_later_virtual_stages_are_told_apart():
    plan = plan_of(VIRTUAL)
    kinds = {kind for kind, _, _ in lanes(plan, ET.fromstring(draw([("one", plan)])))[0]}
    assert {"forward", "forward later", "backward", "backward later"} <= kinds


def test_two_layouts_stand_below_each_other_on_one_scale():
    slow, fast = plan_of([*UNEVEN, "model.recompute=full"]), plan_of(UNEVEN)
    root = ET.fromstring(draw([("as asked", slow), ("the fastest proposed", fast)]))
    scale = (WIDTH - LEFT - RIGHT) / max(slow.time.seconds, fast.time.seconds)
    idle = sorted((float(block.get("y")), float(block.get("width"))) for block in root.iter(f"{SVG}rect")
                  if block.get("class") == "idle" and float(block.get("height")) == LANE)
    assert len(idle) == 8 and idle[4][0] - idle[3][0] > HEAD
    assert idle[0][1] + 1 == pytest.approx(slow.time.pipeline.seconds * scale, abs=0.02)
    assert idle[4][1] + 1 == pytest.approx(fast.time.pipeline.seconds * scale, abs=0.02)


def test_the_file_needs_nothing_from_elsewhere(drawn):
    """Nor is text of a recipe markup."""
    text = draw([("a <b> & c", drawn[0])])
    assert "a &lt;b&gt; &amp; c" in text
    links = re.findall(r"https?://[^\"'<> ]+", text)
    assert links == ["http://www.w3.org/2000/svg"] and not re.search(r"href|<script|@import|url\(", text)
    assert "modelled, not measured" in text
