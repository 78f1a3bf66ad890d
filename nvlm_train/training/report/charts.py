"""Line charts and share bars as inline SVG: no script, no font, no file from elsewhere. Colours are the page's CSS variables.

A chart carries its own points as JSON in `data-chart`, from which the page's script draws the crosshair and its tooltip.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from markupsafe import Markup, escape

MAX_POINTS = 400        # drawn points of one line; longer ones are thinned
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 52, 14, 10, 24
COLOURS = 6             # --c1 … --c6 of the stylesheet


@dataclass(frozen=True)
class Series:
    """One line. points: (x, y); a y of None is a gap. kind: line | faint (raw values under a smoothed line) | dots.

    spread: (low, high) of every point, drawn as a bar through it; only for dots, which are never thinned.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int = 1
    kind: str = "line"
    spread: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Chart:
    """A titled plot. `form` writes a y value for ticks and tooltips."""

    title: str
    series: Sequence[Series]
    form: Callable[[float], str] = field(default=lambda value: f"{value:.3g}")
    width: int = 560
    height: int = 228
    zero: bool = False      # the y axis starts at 0
    top: float | None = None


def smooth(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Moving mean over about a twentieth of the line; gaps are passed over.

    The window looks both ways, so the line does not lag behind a falling loss. It shrinks at the start, where the fall is
    steepest, and is cut off at the end.
    """
    half = len(points) // 40
    totals = list(accumulate((y or 0.0 for _, y in points), initial=0.0))
    counts = list(accumulate((y is not None for _, y in points), initial=0))
    out = []
    for i, (x, _) in enumerate(points):
        start, end = i - min(half, i), min(i + min(half, i), len(points) - 1) + 1
        count = counts[end] - counts[start]
        out.append((x, (totals[end] - totals[start]) / count if count else None))
    return out


def thin(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """At most about MAX_POINTS points that keep each stretch's lowest and highest value, so that no spike is lost."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = math.ceil(len(points) / (MAX_POINTS // 2))
    out = []
    for start in range(0, len(points), size):
        known = [p for p in points[start:start + size] if p[1] is not None]
        if known:
            ends = {min(known, key=lambda p: p[1]), max(known, key=lambda p: p[1])}
            out.extend(sorted(ends))
        else:
            out.append(points[start])
    if out[-1][0] != points[-1][0]:
        out.append(points[-1])
    return out


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5, 5 times a power of ten) that cover low to high."""
    if high <= low:
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    raw = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def line_chart(chart: Chart) -> Markup:
    """The chart as SVG, or a sentence in its place when there is nothing to draw."""
    drawn = [(s, s.points if s.spread else thin(s.points)) for s in chart.series]
    values = [y for _, points in drawn for _, y in points if y is not None]
    values += [end for s in chart.series for ends in s.spread for end in ends]
    if not values:
        return Markup('<p class="empty">Nothing to draw yet.</p>')
    xs = [x for _, points in drawn for x, _ in points]
    y_ticks = ticks(0 if chart.zero else min(values), max(values) if chart.top is None else chart.top)
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    inner_w, inner_h = chart.width - MARGIN_LEFT - MARGIN_RIGHT, chart.height - MARGIN_TOP - MARGIN_BOTTOM

    def px(x: float) -> float:
        return MARGIN_LEFT + (x - x_low) / (x_high - x_low) * inner_w

    def py(y: float) -> float:
        return MARGIN_TOP + (1 - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])) * inner_h

    body = [_grid(chart, y_ticks, py), _x_axis(chart, x_low, x_high, px)]
    body += [_line(s, points, px, py) for s, points in sorted(drawn, key=lambda item: item[0].kind != "faint")]
    told = [{"name": s.name, "colour": s.colour, "points": [
        [x, round(px(x), 1), round(py(y), 1), chart.form(y)] for x, y in points if y is not None
    ]} for s, points in drawn if s.kind != "faint"]
    return Markup(
        f'<svg class="chart" viewBox="0 0 {chart.width} {chart.height}" role="img" aria-label="{escape(chart.title)}" '
        f'data-top="{MARGIN_TOP}" data-bottom="{chart.height - MARGIN_BOTTOM}" '
        f'data-chart="{escape(json.dumps(told, separators=(",", ":")))}">{"".join(body)}</svg>'
    )


def _grid(chart: Chart, y_ticks: list[float], py: Callable[[float], float]) -> str:
    right = chart.width - MARGIN_RIGHT
    return "".join(
        f'<line class="grid" x1="{MARGIN_LEFT}" x2="{right}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>'
        f'<text class="tick" x="{MARGIN_LEFT - 8}" y="{py(y) + 3.5:.1f}" text-anchor="end">{escape(chart.form(y))}</text>'
        for y in y_ticks
    )


def _x_axis(chart: Chart, low: float, high: float, px: Callable[[float], float]) -> str:
    base = chart.height - MARGIN_BOTTOM + 18
    marks = [x for x in ticks(low, high, 6) if low <= x <= high and x == int(x)]
    labels = [f'<text class="tick" x="{px(x):.1f}" y="{base}" text-anchor="middle">{int(x):,}</text>' for x in marks]
    if not marks or px(marks[0]) > MARGIN_LEFT + 40:
        labels.append(f'<text class="tick" x="{MARGIN_LEFT}" y="{base}">step</text>')
    return "".join(labels)


def _line(series: Series, points: list, px: Callable[[float], float], py: Callable[[float], float]) -> str:
    colour = f"var(--c{(series.colour - 1) % COLOURS + 1})"
    known = [(px(x), py(y)) for x, y in points if y is not None]
    if series.kind == "dots" or len(known) == 1:
        joined = _path([(px(x), None if y is None else py(y)) for x, y in points])
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" style="fill:{colour}"/>' for x, y in known)
        bars = "".join(f"M{px(x):.1f} {py(low):.1f}V{py(high):.1f}" for (x, _), (low, high) in zip(points, series.spread, strict=False))
        spread = f'<path class="line" d="{bars}" style="stroke:{colour};opacity:.55"/>' if bars else ""
        return f'<path class="line dashed" d="{joined}" style="stroke:{colour}"/>{spread}<g class="dots">{dots}</g>'
    path = _path([(px(x), None if y is None else py(y)) for x, y in points])
    return f'<path class="line {escape(series.kind)}" d="{path}" style="stroke:{colour}"/>'


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    """SVG path data; a gap lifts the pen."""
    if not points:
        return ""
    moves = [(x, y, before is None) for (_, before), (x, y) in pairwise([(0.0, None), *points]) if y is not None]
    return "".join(f"{'M' if lifted else 'L'}{x:.1f} {y:.1f}" for x, y, lifted in moves)


def share_bar(parts: Sequence[tuple[str, float, int]]) -> Markup:
    """A bar split by (name, amount, colour number), with a legend of percentages."""
    whole = sum(amount for _, amount, _ in parts)
    if whole <= 0:
        return Markup('<p class="empty">Nothing to draw yet.</p>')
    bar, legend = [], []
    for name, amount, colour in parts:
        share = amount / whole
        dye = f"background:var(--c{colour})"
        bar.append(f'<i style="width:{100 * share:.2f}%;{dye}" title="{escape(name)} {share:.1%}"></i>')
        legend.append(f'<span><i class="key" style="{dye}"></i>{escape(name)} <b>{share:.1%}</b></span>')
    return Markup(f'<div class="bar">{"".join(bar)}</div><div class="legend">{"".join(legend)}</div>')
