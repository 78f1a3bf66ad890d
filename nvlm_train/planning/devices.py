"""GPUs and clusters that a run can be planned for: figures of the makers' datasheets, nothing measured (that is `rates`)."""

from dataclasses import dataclass

from nvlm_train.config.typed import suggestion
from nvlm_train.errors import ConfigError
from nvlm_train.model.accounting import peak_flops

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU in the machine that it is usually sold in.

    memory: bytes that a program can allocate on an idle one; bandwidth: of its memory, in bytes a second; link: to the other GPUs
    of its node, one direction, in bytes a second; network: its share of the node's network cards, one direction, in bytes a second;
    processors: streaming multiprocessors; capability: compute capability; source: where the figures are from.
    """

    name: str
    memory: int
    bandwidth: float
    link: float
    network: float
    processors: int
    capability: tuple[int, int]
    source: str

    @property
    def peak(self) -> float:
        """Dense bf16 FLOP/s."""
        return peak_flops(self.name)


_DGX = "NVIDIA datasheets of {}: memory, bandwidth, NVLink, ConnectX cards; memory as the driver reports it"

GPUS = {
    "a100": Gpu("A100", int(79.2 * GIB), 2.039e12, 300e9, 25e9, 108, (8, 0), _DGX.format("A100 80GB SXM and DGX A100")),
    "h100": Gpu("H100", int(79.1 * GIB), 3.35e12, 450e9, 50e9, 132, (9, 0), _DGX.format("H100 SXM and DGX H100")),
    "h200": Gpu("H200", int(139.8 * GIB), 4.8e12, 450e9, 50e9, 132, (9, 0), _DGX.format("H200 SXM and DGX H200")),
    "b200": Gpu("B200", int(178.3 * GIB), 8e12, 900e9, 50e9, 148, (10, 0), _DGX.format("B200 SXM and DGX B200")),
}


@dataclass(frozen=True)
class Cluster:
    """`nodes` machines with `per_node` GPUs each."""

    gpu: Gpu
    nodes: int
    per_node: int

    @property
    def world(self) -> int:
        return self.nodes * self.per_node

    def bandwidth(self, ranks: int, stride: int) -> float:
        """Bytes a second, one direction, that each of `ranks` ranks can exchange with its neighbour in a ring. stride: distance of
        neighbours in the numbering of all ranks, which fills node after node.

        On one node it is NVLink's. A ring that leaves the node enters and leaves it once, over the network cards of all of its
        ranks there.
        """
        if ranks * stride <= self.per_node or ranks == 1:
            return self.gpu.link
        beside = max(1, self.per_node // stride)
        return min(self.gpu.link, beside * self.gpu.network)

    def within_node(self, ranks: int, stride: int) -> bool:
        return ranks * stride <= self.per_node


def find_gpu(name: str) -> Gpu:
    """Raises ConfigError for one that is not in the table."""
    if name.lower() in GPUS:
        return GPUS[name.lower()]
    raise ConfigError(f"gpu={name}: not in the table{suggestion(name.lower(), list(GPUS))} (known: {', '.join(GPUS)}); others are "
                      "added in nvlm_train/planning/devices.py")
