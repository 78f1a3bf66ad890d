"""How fast the ranks talk: all of them, those of each node, and each node with the next.

Every time is the slowest rank's median over repetitions, in seconds; sizes are in bytes. Run on an idle job: numbers taken beside
training say little.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist

from nvlm_train.health.facts import Facts
from nvlm_train.health.roll import Roll, spans

SMALL = 8
LARGE = {"cpu": 4 << 20, "cuda": 64 << 20}      # a gradient bucket's size, near enough
_REPEAT = 5
SLOW = 0.5          # of the median speed of its kind


@dataclass(frozen=True)
class Link:
    """kind: all-reduce | node all-reduce | send. between: which ranks, for people. latency_s: of SMALL bytes. seconds: of `size` bytes.
    gb_s: bus bandwidth, the usual measure: bytes that cross the slowest connection, in GB/s."""

    kind: str
    between: str
    ranks: tuple[int, ...]
    size: int
    latency_s: float
    seconds: float
    gb_s: float

    @property
    def told(self) -> str:
        size = f"{self.size >> 20} MiB" if self.size >= 1 << 20 else f"{self.size} B"
        return (f"{self.kind} {self.between}: {SMALL} B in {self.latency_s * 1e6:,.0f} us, {size} in "
                f"{self.seconds * 1e3:,.2f} ms, {self.gb_s:.2f} GB/s")


def measure(roll: Roll, ranks: Sequence[Facts], me: int, device: torch.device) -> list[Link]:
    """Every link, the same list on every rank. A collective over the whole job; needs its process group.

    Raises JobError naming ranks that did not come back in time, RuntimeError out of a collective that timed out.
    """
    everybody = tuple(range(len(ranks)))
    if len(everybody) == 1:
        return []
    found = [_all_reduce(roll, "all-reduce", f"over all {len(ranks)} ranks", [everybody], me, device)[0]]
    nodes = nodes_of(ranks)
    if 1 < len(nodes) < len(ranks):
        found += _all_reduce(roll, "node all-reduce", "", [group for group in nodes if len(group) > 1], me, device, ranks)
    leaders = [node[0] for node in nodes] if len(nodes) > 1 else list(everybody)
    found += [_pair(roll, ranks, (first, second), me, device) for first, second in pairwise(leaders)]
    return found


def nodes_of(ranks: Sequence[Facts]) -> list[tuple[int, ...]]:
    """The ranks of each host, hosts in the order of their first rank."""
    nodes: dict[str, list[int]] = {}
    for rank in ranks:
        nodes.setdefault(rank.host, []).append(rank.rank)
    return [tuple(node) for node in nodes.values()]


def slow(links: Sequence[Link]) -> list[Link]:
    """Those that reach less than half of the median speed of their kind."""
    found = []
    for kind in dict.fromkeys(link.kind for link in links):
        alike = [link for link in links if link.kind == kind]
        median = statistics.median(link.gb_s for link in alike)
        found += [link for link in alike if link.gb_s < SLOW * median]
    return found


def _all_reduce(roll: Roll, kind: str, between: str, members: Sequence[tuple[int, ...]], me: int, device: torch.device,
                ranks: Sequence[Facts] = ()) -> list[Link]:
    """One link for each group of ranks; the groups work at the same time, as tensor-parallel groups do."""
    groups = [dist.new_group(list(group)) for group in members]     # every rank must make all of them
    mine = next((number for number, group in enumerate(members) if me in group), None)
    times = None
    if mine is not None:
        times = _timed(lambda tensor: dist.all_reduce(tensor, group=groups[mine]), device)
    answers = roll.call(f"{kind} times", times)
    found = []
    for group in members:
        latency, seconds = (max(answers[rank][part] for rank in group) for part in (0, 1))
        size, n = LARGE[device.type], len(group)
        name = between or f"on {ranks[group[0]].host} (ranks {spans(group)})"
        found.append(Link(kind, name, group, size, latency, seconds, 2 * (n - 1) / n * size / seconds / 1e9))
    return found


def _pair(roll: Roll, ranks: Sequence[Facts], pair: tuple[int, int], me: int, device: torch.device) -> Link:
    """There and back, halved."""
    first, second = pair

    def there_and_back(tensor: torch.Tensor) -> None:
        for source, target in (pair, pair[::-1]):
            if me == source:
                dist.send(tensor, target)
            elif me == target:
                dist.recv(tensor, source)

    times = _timed(there_and_back, device) if me in pair else None
    latency, seconds = (value / 2 for value in roll.call(f"send {first} {second}", times)[first])
    hosts = f"{ranks[first].host} and {ranks[second].host} (ranks {first} and {second})"
    return Link("send", f"between {hosts}" if ranks[first].host != ranks[second].host else f"between ranks {first} and {second}",
                pair, LARGE[device.type], latency, seconds, LARGE[device.type] / seconds / 1e9)


def _timed(work: Callable[[torch.Tensor], object], device: torch.device) -> tuple[float, float]:
    """Median seconds of `work` on a small and on a large tensor, after one turn to warm up."""
    medians = []
    for size in (SMALL, LARGE[device.type]):
        tensor, taken = torch.zeros(size // 4, device=device), []
        for _ in range(_REPEAT + 1):
            began = time.perf_counter()
            work(tensor)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - began)
        medians.append(statistics.median(taken[1:]))
    return medians[0], medians[1]
