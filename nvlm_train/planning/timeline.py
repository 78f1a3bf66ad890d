"""A picture of a step: when each pipeline stage is at the forward or the backward of which row, and when it has nothing to do.

One SVG file without script, font or link: any browser shows it, and names a work under the pointer. Layouts are drawn below each other
on one scale of time.
"""

from collections.abc import Iterator, Sequence

from markupsafe import escape

from nvlm_train.config.split import stage_layers
from nvlm_train.planning.plan import Plan
from nvlm_train.planning.reasons import settings
from nvlm_train.planning.schedule import FORWARD, Span

WIDTH, LEFT, RIGHT, LANE, GAP, HEAD, FOOT = 1240, 132, 128, 24, 6, 66, 34     # pixels: RIGHT and LEFT of the lanes, HEAD above a picture's
NUMBERED = 18       # pixels that a work must be wide for its row's number
TICKS = 8           # at most, of the time axis

_STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif; fill: #222; color-scheme: light }
.title { font-size: 15px; font-weight: 600 } .faint { fill: #666 } .right { text-anchor: end } .middle { text-anchor: middle }
.idle { fill: #eceef1 } .forward { fill: #3f7fc1 } .backward { fill: #d98736 } .update { fill: #8a8f98 }
.later { opacity: .72 } .number { fill: #fff; font-size: 10px; text-anchor: middle; pointer-events: none }
.axis { stroke: #c9ccd1 }
"""


def draw(layouts: Sequence[tuple[str, Plan]]) -> str:
    """The SVG. layouts: of one stage, each with its title, drawn in this order."""
    end = max(plan.time.seconds for _, plan in layouts)
    scale = (WIDTH - LEFT - RIGHT) / end
    parts, top = [], 56
    for title, plan in layouts:
        parts += _picture(title, plan, top, scale)
        top += _height(plan)
    run = layouts[0][1].run
    measured = layouts[0][1].bench.memo.measured
    source = "Times are modelled, not measured." if measured is None else f"Layer times measured on {measured.device}; messages and update modelled."
    head = [_text(LEFT, 22, f"{run.recipe}, {run.stage}: one step, stage by stage", "title"), *_legend(), _text(LEFT, top + 8, source, "faint")]
    size = f'width="{WIDTH}" height="{top + 24}" viewBox="0 0 {WIDTH} {top + 24}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{_STYLE}</style>", *head, *parts, "</svg>", ""])


def _height(plan: Plan) -> int:
    return HEAD + plan.run.layout.pipeline * (LANE + GAP) + FOOT


def _legend() -> Iterator[str]:
    at = LEFT
    for kind, what in (("forward", "forward"), ("backward", "backward"), ("update", "gradients summed, weights updated and handed out"),
                       ("idle", "nothing to do")):
        yield _block(at, 34, 12, 12, kind)
        yield _text(at + 18, 44, what, "faint")
        at += 40 + 7 * len(what)


def _picture(title: str, plan: Plan, top: float, scale: float) -> Iterator[str]:
    time, played = plan.time, plan.time.pipeline
    yield _text(LEFT, top + 24, f"{title}: {settings(plan.run)}", "title")
    yield _text(LEFT, top + 44, f"step {time.seconds:.2f} s, of it the pipeline {played.seconds:.2f} s; stages idle for {played.bubble:.0%} of "
                                f"that; balance {played.balance:.0%} (mean stage's work over the busiest's)", "faint")
    for stage in range(plan.run.layout.pipeline):
        yield from _lane(plan, stage, top + HEAD + stage * (LANE + GAP), scale)
    yield from _axis(top + HEAD + plan.run.layout.pipeline * (LANE + GAP), time.seconds, scale)


def _lane(plan: Plan, stage: int, top: float, scale: float) -> Iterator[str]:
    time, played, middle = plan.time, plan.time.pipeline, top + LANE / 2 + 4
    held = stage_layers(plan.run.model.language.layers, plan.run.layout, stage)
    count = sum(map(len, held))
    yield _text(LEFT - 8, middle, f"stage {stage}: {count} layer{'' if count == 1 else 's'}", "right")
    yield _block(LEFT, top, played.seconds * scale, LANE, "idle")
    for span in played.spans[stage]:
        yield from _work(span, plan.run.layout.pipeline, top, scale)
    update = time.updates[stage][0]
    if update:
        yield _block(LEFT + played.seconds * scale, top, update * scale, LANE, "update", f"update, {update:.3f} s")
    busy = f"{played.busy[stage]:.2f} s, {played.busy[stage] / played.seconds:.0%} busy"
    yield _text(LEFT + time.seconds * scale + 8, middle, busy, "faint")


def _work(span: Span, stages: int, top: float, scale: float) -> Iterator[str]:
    seconds = span.end - span.begin
    if not seconds:
        return
    turn, wide = span.piece // stages, seconds * scale
    kind = "forward" if span.kind == FORWARD else "backward"
    told = f"{kind} of row {span.row}" + (f", virtual stage {turn}" if turn else "") + f": {span.begin:.3f} to {span.end:.3f} s"
    yield _block(LEFT + span.begin * scale, top, wide, LANE, f"{kind} later" if turn else kind, told)
    if wide >= NUMBERED:
        yield _text(LEFT + (span.begin + span.end) / 2 * scale, top + LANE / 2 + 4, str(span.row), "number")


def _axis(top: float, seconds: float, scale: float) -> Iterator[str]:
    step = _step(seconds)
    for number in range(int(seconds / step) + 1):
        at = LEFT + number * step * scale
        yield f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{top - GAP:.1f}" y2="{top:.1f}"/>'
        yield _text(at, top + 14, f"{number * step:g} s", "faint middle")


def _step(seconds: float) -> float:
    """Between two ticks: 1, 2 or 5 times a power of ten, as small as leaves TICKS of them."""
    for power in range(-4, 6):
        for times in (1, 2, 5):
            if seconds / (times * 10.0**power) <= TICKS:
                return times * 10.0**power
    return seconds


def _block(x: float, y: float, wide: float, high: float, kind: str, told: str = "") -> str:
    """A hair's breadth is left between neighbours: a tenth of a block, a pixel at most."""
    inner = f"<title>{escape(told)}</title>" if told else ""
    return f'<rect class="{kind}" x="{x:.2f}" y="{y:.1f}" width="{wide - min(1, wide / 10):.2f}" height="{high}">{inner}</rect>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
