"""A trace as torch's profiler writes it (Chrome's trace event format), read into events that know whose time they are.

Backward: the profiler links every function of the backward with the operation that made it (flow events named `fwdbwd`, from
autograd's sequence numbers), so it is the part's in which that operation ran. A gradient's accumulation has no such
operation; it follows the function that made the gradient, and is counted with it. What a checkpoint computes again in the
backward lies in ranges of its own. Times are in microseconds from the trace's first event on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nvlm_train.training.profile.parts import MARK, STEP, Owner

_HOST = {"cpu_op", "user_annotation"}
_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
_NODE = "autograd::engine::evaluate_function: "
_OTHER = Owner("other", "forward")


@dataclass(slots=True, eq=False)
class Event:
    """Something that the host did. parent: the event of the same thread that it lies in."""

    name: str
    start: float
    end: float
    thread: object
    parent: "Event | None" = None
    owner: Owner = _OTHER


@dataclass(slots=True, eq=False)
class Work:
    """Something that a GPU did. launched: by which event of the host; None if that is unknown."""

    name: str
    start: float
    end: float
    launched: Event | None


@dataclass
class Trace:
    """main: events of the thread that trains, in order; ends: its marks at the end of steps; nodes: functions of the
    backward, of all threads; collectives: (start, end) of what gloo did in its own threads; work: of the GPU."""

    main: list[Event] = field(default_factory=list)
    ends: list[Event] = field(default_factory=list)
    nodes: list[Event] = field(default_factory=list)
    collectives: list[tuple[float, float]] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)


def read_trace(content: Mapping) -> Trace:
    """content: the trace's JSON. Raises ValueError if no step ended in it."""
    rows = content["traceEvents"]
    origin = min((row["ts"] for row in rows if row.get("ph") == "X"), default=0.0)
    events, launchers = _events(rows, origin)
    _attribute(events, _links(rows, origin))
    ends = [event for event in events if event.name == STEP]
    if not ends:
        raise ValueError("the trace holds no finished step")
    main = ends[0].thread
    return Trace(
        main=[event for event in events if event.thread == main], ends=ends,
        nodes=[event for event in events if event.name.startswith(_NODE)],
        collectives=[(event.start, event.end) for event in events if event.thread != main and event.name.startswith("gloo:")],
        work=sorted((_work(row, origin, launchers) for row in rows if row.get("cat") in _DEVICE and row.get("ph") == "X"),
                    key=lambda work: work.start))


def _events(rows: Iterable[Mapping], origin: float) -> tuple[list[Event], dict[object, Event]]:
    """(the host's events by their start, those around others first; external id -> event: so a GPU's work names its launcher)."""
    events, launchers = [], {}
    for row in rows:
        if row.get("cat") in _HOST and row.get("ph") == "X":
            start = row["ts"] - origin
            event = Event(row["name"], start, start + row["dur"], row["tid"])
            events.append(event)
            launchers[row.get("args", {}).get("External id")] = event
    launchers.pop(None, None)
    events.sort(key=lambda event: (event.start, -event.end))
    around: dict[object, list[Event]] = {}
    for event in events:
        stack = around.setdefault(event.thread, [])
        while stack and stack[-1].end <= event.start:
            stack.pop()
        if stack:
            event.parent, event.end = stack[-1], min(event.end, stack[-1].end)
        stack.append(event)
    return events, launchers


def _work(row: Mapping, origin: float, launchers: Mapping[object, Event]) -> Work:
    start = row["ts"] - origin
    return Work(row["name"], start, start + row["dur"], launchers.get(row.get("args", {}).get("External id")))


def _links(rows: Iterable[Mapping], origin: float) -> dict[tuple, tuple]:
    """(thread, start) of a function of the backward -> (thread, start) of the operation that made it."""
    made, uses = {}, {}
    for row in rows:
        if row.get("cat") == "fwdbwd":
            (made if row["ph"] == "s" else uses)[row["id"]] = (row["tid"], row["ts"] - origin)
    return {place: made[number] for number, place in uses.items() if number in made}


def _attribute(events: list[Event], links: Mapping[tuple, tuple]) -> None:
    """In the order of time: an operation is known before its backward, an event before those within it."""
    at = {(event.thread, event.start): event for event in events}
    made_by: dict[Event, Event] = {}
    for use, made in links.items():     # a link ends at the function itself, in the event of the engine that calls it
        if (event := at.get(use)) and (source := at.get(made)):
            made_by[event.parent if event.parent and event.parent.name.startswith(_NODE) else event] = source
    last: dict[object, Owner] = {}      # of each thread's newest function of the backward
    for event in events:
        event.owner = _owner(event, made_by.get(event), last)
        if event.name.startswith(_NODE):
            last[event.thread] = event.owner


def _owner(event: Event, made_by: Event | None, last: Mapping[object, Owner]) -> Owner:
    outer = event.parent.owner if event.parent else _OTHER
    if outer.component == "communication":
        return outer
    if event.name.startswith("c10d::"):
        return Owner("communication")
    if event.name.startswith(MARK):
        return Owner(event.name.removeprefix(MARK), outer.phase)
    if not event.name.startswith(_NODE):
        return outer
    if made_by is not None:
        return Owner(made_by.owner.component, "recompute" if "CheckpointFunction" in event.name else "backward")
    if event.name.endswith("GraphRoot"):    # where a backward begins
        return Owner("other", "backward")
    if event.name.endswith("AccumulateGrad") and event.thread in last:
        return Owner(last[event.thread].component, "backward")
    return Owner("unattributed", "backward")
