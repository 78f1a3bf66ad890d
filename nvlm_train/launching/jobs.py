"""Which jobs a submission becomes: one, one a stage (chain), or an array of them (sweep). No Slurm is asked here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nvlm_train.config.cluster import Cluster
from nvlm_train.config.compose import compose, sweep_words
from nvlm_train.config.rules import check_world
from nvlm_train.config.schema import Run
from nvlm_train.config.submission import Submission
from nvlm_train.errors import ConfigError
from nvlm_train.launching.mounts import unmounted

FOLDER = "slurm"        # of a run directory: batch scripts and what jobs print
_LONGEST_NAME = 60      # characters of a sweep's folder


@dataclass(frozen=True)
class Job:
    """One sbatch file. Paths are absolute."""

    name: str
    words: tuple[str, ...]      # of `nvlm train`, without a sweep's
    run_dir: Path
    nodes: int
    cluster: Cluster
    workdir: Path               # where the words' relative paths start
    variants: tuple["Variant", ...] = ()
    then: Path | None = None    # the batch script that this one submits when it is done
    evaluates: bool = False     # it asks the checkpoints of `run_dir`, which other jobs make

    @property
    def folder(self) -> Path:
        return self.run_dir / FOLDER

    @property
    def script(self) -> Path:
        return self.folder / f"{self.name}.sbatch"

    @property
    def world(self) -> int:
        return self.nodes * self.cluster.ranks_per_node


@dataclass(frozen=True)
class Variant:
    """One task of a job array."""

    words: tuple[str, ...]
    run_dir: Path


def plan_jobs(asked: Submission, cluster: Cluster, words: Sequence[str], runs: Sequence[Run], workdir: Path) -> list[Job]:
    """The jobs in the order in which they run; only the first is submitted by hand.

    words: those of `nvlm train`, already composed into `runs`. Raises ConfigError with every problem found.
    """
    sweep = sweep_words(asked.sweep)
    variants, problems = _variants(words, sweep)
    problems += [*_layouts(variants or [runs], asked.nodes, cluster), *_restarts(runs, cluster), *_shape(asked, cluster, runs),
                 *_evaluation(asked, cluster, runs)]
    if any(key in asked.sweep for key in ("run.dir", "stage", "recipe")):
        problems.append("sweep.run.dir, sweep.stage and sweep.recipe: a sweep gives each run a folder of its own, and one recipe")
    run_dir = workdir / runs[0].run.dir
    problems += unmounted(runs, run_dir, workdir, cluster.container)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    own = tuple(word for word in words if not word.startswith("run.dir="))
    name = runs[0].recipe
    if cluster.chain:
        return _chain(name, own, runs, run_dir, asked.nodes, cluster, workdir)
    tasks = tuple(Variant(combination, run_dir / _folder_name(index, combination)) for index, combination in enumerate(sweep))
    stage = f"-{runs[0].stage}" if len(runs) == 1 else ""
    return [Job(name + stage, own, run_dir, asked.nodes, cluster, workdir, tasks)]


def evaluation_job(cluster: Cluster, runs: Sequence[Run], run_dir: Path, workdir: Path) -> Job | None:
    """The job that asks the run's checkpoints while others train it; None if `cluster.evaluate_nodes` is 0. Its launcher is srun."""
    if not cluster.evaluate_nodes:
        return None
    name = f"{runs[0].recipe}-evaluate"
    return Job(name, (), run_dir, cluster.evaluate_nodes, replace(cluster, launcher="srun"), workdir, evaluates=True)


def _evaluation(asked: Submission, cluster: Cluster, runs: Sequence[Run]) -> list[str]:
    nodes, found = cluster.evaluate_nodes, []
    if not nodes:
        return found
    if asked.sweep:
        found.append("cluster.evaluate_nodes and sweep.…: one or the other; ask each run of a sweep by nvlm eval-checkpoints")
    if not runs[0].evaluate.benchmarks:
        found.append(f"cluster.evaluate_nodes={nodes}, but there is nothing to ask: name benchmarks in evaluate.benchmarks")
    elif runs[0].evaluate.at_checkpoints:
        found.append(f"cluster.evaluate_nodes={nodes}, but the training asks its checkpoints itself: add evaluate.at_checkpoints=false")
    return found + [problem.replace("nodes=", "cluster.evaluate_nodes=", 1) for problem in _layouts([runs], nodes, cluster)]


def _chain(name: str, words: Sequence[str], runs: Sequence[Run], run_dir: Path, nodes: int, cluster: Cluster,
           workdir: Path) -> list[Job]:
    """A job for each stage; the later one starts from the last checkpoint of the earlier, resharded if the layouts differ."""
    jobs: list[Job] = []
    words = tuple(word for word in words if word.partition("=")[0] != "stage")
    for run, before in reversed(list(zip(runs, [None, *runs], strict=False))):
        start = (f"init={run_dir / 'checkpoints' / before.stage}",) if before else ()
        kept = tuple(word for word in words if not (before and word.startswith("init=")))
        jobs.append(Job(f"{name}-{run.stage}", (*kept, f"stage={run.stage}", *start), run_dir, nodes, cluster, workdir,
                        then=jobs[-1].script if jobs else None))
    return jobs[::-1]


def _variants(words: Sequence[str], sweep: Sequence[tuple[str, ...]]) -> tuple[list[list[Run]], list[str]]:
    """(the runs of each task of a sweep, what is wrong with them)."""
    variants, problems = [], []
    for combination in sweep:
        try:
            variants.append(compose([*words, *combination]))
        except ConfigError as error:
            problems += [f"sweep, {' '.join(combination)}: {problem}" for problem in error.problems]
    return variants, problems


def _folder_name(index: int, words: Sequence[str]) -> str:
    return f"{index}-{re.sub(r'[^A-Za-z0-9.=+-]+', '_', ','.join(words))}"[:_LONGEST_NAME].rstrip("._-")


def _layouts(variants: Sequence[Sequence[Run]], nodes: int, cluster: Cluster) -> list[str]:
    found = []
    for runs in variants:
        for run in runs:
            try:
                check_world(run, nodes * cluster.ranks_per_node)
            except ConfigError as error:
                found.append(f"{run.stage}: nodes={nodes} x {cluster.ranks_per_node} ranks of a node: {error}")
    return found


def _restarts(runs: Sequence[Run], cluster: Cluster) -> list[str]:
    if cluster.requeue and runs[0].run.resume == "never":
        return ["run.resume=never: a requeued job could not go on in its own run directory; use auto, or cluster.requeue=false"]
    return []


def _shape(asked: Submission, cluster: Cluster, runs: Sequence[Run]) -> list[str]:
    if cluster.chain and asked.sweep:
        return ["cluster.chain and sweep.…: one or the other; submit the stages of each run of a sweep by themselves"]
    if cluster.chain and len(runs) == 1:
        return [f"cluster.chain=true makes a job of each stage, and stage={runs[0].stage} is only one: add stage=all"]
    return []
