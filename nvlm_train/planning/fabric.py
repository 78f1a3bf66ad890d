"""The links between the ranks of a layout: what each kind of message travels over."""

from dataclasses import dataclass
from functools import lru_cache

from nvlm_train.config.schema import Layout, Model
from nvlm_train.kernels import Found, KernelPlan, decide
from nvlm_train.planning.cost import PLAIN_KERNELS, Place
from nvlm_train.planning.devices import Cluster, Gpu
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
    (data) and within a row (context; None: rows are not shared). kernels: what computes each part there."""

    machine: Machine
    tensor: Link
    pipeline: Link
    data: Link
    context: Link | None = None
    kernels: KernelPlan = PLAIN_KERNELS

    def place(self, layout: Layout) -> Place:
        shared = () if self.context is None else (layout.context, self.context.bandwidth, self.context.latency_s)
        return Place(self.machine, layout.tensor, layout.sequence and layout.tensor > 1, self.tensor.bandwidth, self.tensor.latency_s,
                     *shared, kernels=self.kernels)


@lru_cache(maxsize=16)
def kernels_on(gpu: Gpu, model: Model) -> KernelPlan:
    """What a run takes on a GPU that is not here: everything that it asks for is installed and works.

    Raises ConfigError for what such a GPU cannot do.
    """
    found = Found("cuda", gpu.capability, varlen=True, te=None, apex=None, apex_wgrad=None, product=None, compiler=None)
    return decide(model, "fp32" if model.dtype == "fp32" else "bf16", found)


def fabric(cluster: Cluster, layout: Layout, kernels: KernelPlan, rates: Rates = MEASURED) -> Fabric:
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
                  link(layout.context, layout.tensor) if layout.context > 1 else None, kernels)
