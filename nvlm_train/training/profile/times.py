"""Every moment of the profiled steps is one owner's: what adds up to the steps' time, to the microsecond.

On a CPU it belongs to the innermost event of the thread that trains. On a GPU to the kernel that runs; of several to the one
that began first; to communication only where nothing else runs; and where nothing runs at all, to data before the step's data
is there, else to nobody. After the last function of a step's backward all that is not communication is the optimizer's (norm,
clipping, update).
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from nvlm_train.training.profile.parts import MARK, Owner
from nvlm_train.training.profile.trace import Event, Trace, Work

Interval = tuple[float, float]
_DATA, _IDLE, _OPTIMIZER, _COMMUNICATION = Owner("data"), Owner("idle"), Owner("optimizer"), Owner("communication")
PYTHON = "Python between operations"


@dataclass(frozen=True)
class Window:
    """One step in a trace, in microseconds. ready: its data was there; learnt: its backward was over; end: its work was done."""

    begin: float
    ready: float
    learnt: float
    end: float


@dataclass
class Spent:
    """Microseconds of all windows together. hidden: communication while something else ran, in none of `owners`;
    operations: (name, owner) -> [calls, microseconds]."""

    owners: dict[Owner, float] = field(default_factory=lambda: defaultdict(float))
    operations: dict[tuple[str, Owner], list] = field(default_factory=lambda: defaultdict(lambda: [0, 0.0]))
    hidden: float = 0.0


def windows_of(trace: Trace, told: Sequence[tuple[float, float]]) -> list[Window]:
    """told: (seconds that the step waited for data, seconds from then to the mark at its end) of each step. A GPU ends its work while
    the mark lasts."""
    windows = []
    for mark, (waited, worked) in zip(trace.ends, told, strict=True):
        ready = mark.start - worked * 1e6
        nodes = (node.end for node in trace.nodes if ready <= node.start < mark.start)
        end = mark.end if trace.work else mark.start
        windows.append(Window(ready - waited * 1e6, ready, max(nodes, default=mark.start), end))
    return windows


def spent(trace: Trace, windows: Sequence[Window]) -> Spent:
    """On a GPU if the trace has work of one, else on the CPU."""
    found = Spent()
    collectives = list(merged(trace.collectives))
    for window in windows:
        if trace.work:
            _on_gpu(trace.work, window, found)
        else:
            _on_cpu(trace.main, collectives, window, found)
    return found


# -- on a CPU --------------------------------------------------------------------------------------------------------


def _on_cpu(events: Sequence[Event], collectives: Sequence[Interval], window: Window, found: Spent) -> None:
    seen = set()
    for begin, end, event in innermost(events, window.begin, window.end):
        for start, stop in _cut(begin, end, (window.ready, window.learnt)):
            owner, amount = _host_owner(event, start, window), stop - start
            if owner is not _DATA and not _computes(event):
                waited = _length(overlaps(collectives, start, stop))
                found.owners[_COMMUNICATION] += waited
                amount -= waited
            found.owners[owner] += amount
            if event is not None and owner is not _DATA:
                row = found.operations[PYTHON if event.name.startswith(MARK) else event.name, owner]
                row[0] += event not in seen
                row[1] += amount
                seen.add(event)


def _computes(event: Event | None) -> bool:
    """Whether it is an operation; else nothing of torch's runs, and what is under way in gloo's threads is waited for."""
    return event is not None and "::" in event.name and not event.name.startswith(("autograd::", "c10d::"))


def _host_owner(event: Event | None, at: float, window: Window) -> Owner:
    if at < window.ready:
        return _DATA
    if event is not None and event.owner == _COMMUNICATION:
        return _COMMUNICATION
    if at >= window.learnt:
        return _OPTIMIZER
    return event.owner if event is not None else _IDLE


def innermost(events: Sequence[Event], begin: float, end: float) -> Iterator[tuple[float, float, Event | None]]:
    """(from, to, the innermost event then) without a gap from `begin` to `end`. events: of one thread, in order."""
    at, stack = begin, []
    for event in events:
        if event.end <= begin or event.start >= end:
            continue
        while stack and stack[-1].end <= event.start:
            done = stack.pop()
            if done.end > at:
                yield at, done.end, done
                at = done.end
        if event.start > at:
            yield at, event.start, stack[-1] if stack else None
            at = event.start
        stack.append(event)
    while stack:
        done = stack.pop()
        stop = min(done.end, end)
        if stop > at:
            yield at, stop, done
            at = stop
    if end > at:
        yield at, end, None


def _cut(start: float, stop: float, places: Iterable[float]) -> Iterator[Interval]:
    for place in sorted(places):
        if start < place < stop:
            yield start, place
            start = place
    yield start, stop


# -- on a GPU --------------------------------------------------------------------------------------------------------


def _on_gpu(works: Sequence[Work], window: Window, found: Spent) -> None:
    busy: list[Interval] = []
    talking: list[Interval] = []
    at = window.begin
    for work in works:
        start, stop = max(work.start, window.begin), min(work.end, window.end)
        owner = _device_owner(work, window)
        if stop <= start:
            continue
        if owner is _COMMUNICATION:
            talking.append((start, stop))
            continue
        row = found.operations[work.name, owner]
        row[0] += 1
        if stop > (start := max(start, at)):
            row[1] += stop - start
            found.owners[owner] += stop - start
            busy.append((start, stop))
            at = stop
    talk = list(merged(talking))
    exposed = list(minus(talk, busy))
    quiet = list(minus([(window.begin, window.end)], list(merged(busy + exposed))))
    waited = _length(overlaps(quiet, window.begin, window.ready))
    found.owners[_COMMUNICATION] += _length(exposed)
    found.hidden += _length(talk) - _length(exposed)
    found.owners[_DATA] += waited
    found.owners[_IDLE] += _length(quiet) - waited


def _device_owner(work: Work, window: Window) -> Owner:
    if "nccl" in work.name.lower():
        return _COMMUNICATION
    if work.launched is None:
        return Owner("other")
    return _OPTIMIZER if window.learnt <= work.launched.start < window.end else work.launched.owner


# -- intervals -------------------------------------------------------------------------------------------------------


def merged(intervals: Iterable[Interval]) -> Iterator[Interval]:
    """Their union, in order."""
    start = stop = None
    for a, b in sorted(intervals):
        if stop is None or a > stop:
            if stop is not None:
                yield start, stop
            start, stop = a, b
        else:
            stop = max(stop, b)
    if stop is not None:
        yield start, stop


def overlaps(intervals: Sequence[Interval], start: float, stop: float) -> Iterator[Interval]:
    """What of each interval lies in start to stop. intervals: disjoint, in order."""
    for at in range(max(0, bisect_left(intervals, (start,)) - 1), len(intervals)):
        a, b = intervals[at]
        if a >= stop:
            break
        if b > start:
            yield max(a, start), min(b, stop)


def minus(intervals: Iterable[Interval], taken: Sequence[Interval]) -> Iterator[Interval]:
    """What of the intervals is not taken. taken: disjoint, in order."""
    for start, stop in intervals:
        for a, b in overlaps(taken, start, stop):
            if a > start:
                yield start, a
            start = b
        if stop > start:
            yield start, stop


def _length(intervals: Iterable[Interval]) -> float:
    return sum(b - a for a, b in intervals)
