"""One stage on one cluster: whether it fits, how long a step takes, how long all steps take."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from nvlm_train.config.schema import Run
from nvlm_train.config.split import row_multiple
from nvlm_train.model.accounting import Parts, SampleWork
from nvlm_train.planning.devices import GIB, Cluster
from nvlm_train.planning.fabric import Fabric, fabric, kernels_on
from nvlm_train.planning.layer_times import LayerTimes
from nvlm_train.planning.memory import Memory, rank_memory, standing
from nvlm_train.planning.step import Step, packed_steps, typical_step
from nvlm_train.planning.timing import Memo, StepTime, step_time, useful_of

MEMORY_ERROR = 0.08     # bound on what peak memory may exceed its prediction by: what is proposed leaves room for it
STEP_ERROR = 0.15       # bound on how far a predicted step time is meant to be off: docs/planning.md


@dataclass(frozen=True)
class Bench:
    """What all layouts of one stage are tried on. samples: drawn from, for a step; useful: operations of a mean step; the rest only
    saves time."""

    cluster: Cluster
    samples: Sequence[SampleWork]
    useful: Parts
    memo: Memo = field(default_factory=Memo)
    packed: dict = field(default_factory=dict)
    steps: dict = field(default_factory=dict)
    stands: dict = field(default_factory=dict)

    def replicas(self, run: Run) -> int:
        """Data-parallel size of a layout that divides the cluster."""
        return self.cluster.world // (run.layout.tensor * run.layout.pipeline * run.layout.context)

    def step(self, run: Run) -> Step:
        key = (self.replicas(run), row_multiple(run.layout), run.data.pack_tokens, run.data.pack_tiles)
        if key not in self.steps:
            size = (run.data.pack_tokens, run.data.pack_tiles)
            if size not in self.packed:
                self.packed[size] = packed_steps(run, self.samples)
            self.steps[key] = typical_step(run, self.packed[size], self.replicas(run))
        return self.steps[key]

    def fabric(self, run: Run) -> Fabric:
        return fabric(self.cluster, run.layout, kernels_on(self.cluster.gpu, run.model))

    def memory(self, run: Run, rank: int) -> Memory:
        """Of a pipeline rank."""
        if (run.layout, rank) not in self.stands:
            self.stands[run.layout, rank] = standing(run, self.cluster.world, rank)
        return rank_memory(run, self.cluster.world, rank, stands=self.stands[run.layout, rank])

    def time(self, run: Run) -> StepTime:
        return step_time(run, self.fabric(run), self.step(run), self.replicas(run), self.useful, self.memo)


def bench_of(run: Run, cluster: Cluster, samples: Sequence[SampleWork], measured: LayerTimes | None = None) -> Bench:
    """measured: of this run (`layer_times.refuse_unlike`)."""
    return Bench(cluster, samples, useful_of(run, samples), Memo(measured))


@dataclass(frozen=True)
class Plan:
    """One layout of one stage."""

    run: Run
    bench: Bench

    @cached_property
    def step(self) -> Step:
        return self.bench.step(self.run)

    @cached_property
    def time(self) -> StepTime:
        return self.bench.time(self.run)

    @cached_property
    def memory(self) -> list[Memory]:
        """Of each pipeline rank."""
        return [self.bench.memory(self.run, rank) for rank in range(self.run.layout.pipeline)]

    @property
    def fullest(self) -> int:
        """The pipeline rank that needs most memory."""
        return max(range(len(self.memory)), key=lambda rank: self.memory[rank].total)

    @property
    def filled(self) -> float:
        """Share of the GPU's memory that the fullest rank needs."""
        return self.memory[self.fullest].total / self.bench.cluster.gpu.memory

    @property
    def fits(self) -> bool:
        return self.filled <= 1

    @property
    def fits_surely(self) -> bool:
        """Also if the prediction is as far too low as it may be."""
        return self.too_full_for_sure is None

    @cached_property
    def too_full_for_sure(self) -> int | None:
        """The first pipeline rank that then does not fit."""
        return next((rank for rank in range(self.run.layout.pipeline) if not self.fits_on(rank)), None)

    def fits_on(self, rank: int) -> bool:
        """Whether one pipeline rank then fits."""
        return self.bench.memory(self.run, rank).total <= self.bench.cluster.gpu.memory / (1 + MEMORY_ERROR)

    @property
    def days(self) -> float:
        return self.time.seconds * self.run.train.steps / 86400

    @property
    def gpu_hours(self) -> float:
        return self.days * 24 * self.bench.cluster.world

    @property
    def mfu(self) -> float:
        return self.time.utilisation(self.bench.cluster.gpu.peak)

    def too_full(self) -> str:
        """Why it does not fit, for people."""
        rank, gpu = self.fullest, self.bench.cluster.gpu
        return (f"{self.run.stage} does not fit: pipeline rank {rank} of {self.run.layout.pipeline} is the fullest and needs "
                f"{self.memory[rank].total / GIB:.1f} GiB, {gpu.name} has {gpu.memory / GIB:.1f} GiB")
