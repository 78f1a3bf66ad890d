"""The links between the ranks of a layout: what each kind of message travels over."""

from dataclasses import dataclass

from nvlm_train.config.schema import Layout
from nvlm_train.planning.cost import Place
from nvlm_train.planning.devices import Cluster
from nvlm_train.planning.rates import MEASURED, Machine, Rates, machine


@dataclass(frozen=True)
class Link:
    """bandwidth: bytes a second, one direction, that a message really gets; latency_s: of each message."""

    bandwidth: float
    latency_s: float

    def seconds(self, sent: float) -> float:
        return sent / self.bandwidth + self.latency_s if sent else 0.0


@dataclass(frozen=True)
class Fabric:
    """One rank's machine, and its links within a layer (tensor), between stages (pipeline), between all that hold the same weights
    (data) and within a row (context; None: rows are not shared)."""

    machine: Machine
    tensor: Link
    pipeline: Link
    data: Link
    context: Link | None = None

    def place(self, layout: Layout) -> Place:
        shared = () if self.context is None else (layout.context, self.context.bandwidth, self.context.latency_s)
        return Place(self.machine, layout.tensor, layout.sequence and layout.tensor > 1, self.tensor.bandwidth, self.tensor.latency_s,
                     *shared)


def fabric(cluster: Cluster, layout: Layout, rates: Rates = MEASURED) -> Fabric:
    """Ranks are numbered tensor first, then context, data, pipeline (Megatron's order), node after node."""
    copies = max(1, cluster.world // (layout.tensor * layout.pipeline))

    def link(ranks: int, stride: int) -> Link:
        inside = cluster.within_node(ranks, stride)
        share, latency = (rates.link, rates.latency_s) if inside else (rates.network, rates.network_latency_s)
        return Link(cluster.bandwidth(ranks, stride) * share, latency)

    def neighbour(stride: int) -> Link:
        """One rank to one other: with its own share of the node's network cards."""
        if layout.pipeline * stride <= cluster.per_node:
            return Link(cluster.gpu.link * rates.link, rates.latency_s)
        return Link(cluster.gpu.network * rates.network, rates.network_latency_s)

    return Fabric(machine(cluster.gpu, rates), link(layout.tensor, 1), neighbour(layout.tensor * copies), link(copies, layout.tensor),
                  link(layout.context, layout.tensor) if layout.context > 1 else None)
