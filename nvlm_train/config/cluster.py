"""A Slurm cluster as `nvlm submit` sees it: plain frozen dataclasses, and what is wrong with one.

Values come from recipes/cluster/NAME.yaml, or a file of the site's own, and from `cluster.key=value` words; see `compose`.
Nothing of this is part of a `Run`: the same run fits any cluster.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from nvlm_train.config.dump import is_secret
from nvlm_train.config.typed import suggestion

LAUNCHERS = ("torchrun", "srun")
RUNTIMES = ("none", "pyxis", "apptainer")
# Slurm's forms of a time limit: minutes, minutes:seconds, hours:minutes:seconds, and days-hours[:minutes[:seconds]].
_TIME = re.compile(r"(?:(?P<days>\d+)-(?P<day_hours>\d+)(?::(?P<day_minutes>\d+))?(?::(?P<day_seconds>\d+))?"
                   r"|(?:(?P<hours>\d+):(?=\d+:))?(?P<minutes>\d+)(?::(?P<seconds>\d+))?)\Z")
_MEMORY = re.compile(r"\d+[KMGT]?\Z", re.IGNORECASE)
_LONGEST_LEAD = 65535       # sbatch's --signal: 16 bits
# What the batch script is built of: a second value of these would contradict the first.
_OURS = ("account", "array", "chdir", "comment", "constraint", "cpus-per-task", "exclusive", "gpus-per-node", "job-name", "mem",
         "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "partition", "qos", "requeue", "reservation",
         "signal", "time")


@dataclass(frozen=True)
class Container:
    """What the ranks run in."""

    runtime: str = "none"           # none | pyxis (srun --container-image, by enroot) | apptainer
    image: str | None = None        # a .sqsh or .sif file on storage that all nodes share, or a registry's name of it
    mounts: tuple[str, ...] = ()    # FOLDER, or OUTSIDE:INSIDE[:ro], beside the folder that the job is submitted from


@dataclass(frozen=True)
class Variable:
    """One environment variable. value null: off, shown in the batch script as a comment."""

    value: str | None = None
    why: str = "given on the command line"


@dataclass(frozen=True)
class Cluster:
    partition: str | None = None    # null: Slurm's default
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    constraint: str | None = None
    time: str = "24:00:00"          # limit of one job; a requeued job gets it anew
    gpus_per_node: int = 8          # asked of Slurm; 0: none
    processes_per_node: int | None = None   # ranks; default: one for each GPU
    cpus_per_process: int | None = None     # default: Slurm's, which with exclusive are all
    memory: str | None = "0"        # of a node, such as 900G; 0: all; null: Slurm's default
    exclusive: bool = True
    launcher: str = "torchrun"      # torchrun: one task a node, which starts the ranks | srun: one task a rank
    container: Container = field(default_factory=Container)
    setup: tuple[str, ...] = ()     # lines of shell before the ranks start, such as: source /shared/venv/bin/activate
    python: str = "python"          # the interpreter that has nvlm_train, inside the container if there is one
    signal_s: int = 300             # seconds before the time limit at which the run is asked to save and stop
    requeue: bool = True            # start again after preemption, time limit or crash
    max_requeues: int = 50          # restarts of one job, whatever their reason
    chain: bool = False             # stage=all as two jobs: the first submits the second when it is done
    evaluate_nodes: int = 0         # of a second job, which asks the checkpoints benchmarks while the first trains; 0: no such job
    sweep_at_once: int = 0          # jobs of a sweep that run at the same time; 0: all
    comment: str | None = None
    sbatch: dict[str, str | None] = field(default_factory=dict)     # further options, such as switches: "1"; null: without value
    env: dict[str, Variable] = field(default_factory=dict)

    @property
    def ranks_per_node(self) -> int:
        return self.gpus_per_node if self.processes_per_node is None else self.processes_per_node


def seconds_of(time: str) -> int | None:
    """A time limit of Slurm's in seconds; None if it is not one. "UNLIMITED" is none: a run must know when it has to save."""
    found = _TIME.match(time)
    if not found:
        return None
    parts = {name: int(text) for name, text in found.groupdict().items() if text}
    minutes = parts.get("day_minutes", parts.get("minutes", 0))
    hours = parts.get("days", 0) * 24 + parts.get("day_hours", parts.get("hours", 0))
    return hours * 3600 + minutes * 60 + parts.get("day_seconds", parts.get("seconds", 0))


def problems(cluster: Cluster) -> Iterator[str]:
    """Everything wrong with a cluster's settings, a sentence each."""
    yield from _choices(cluster)
    yield from _amounts(cluster)
    yield from _container(cluster.container)
    for name, variable in cluster.env.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            yield f"cluster.env.{name}: no environment variable can have this name"
        elif is_secret(name) and variable.value is not None:
            yield (f"cluster.env.{name}: batch scripts are files that others can read, so no secret may enter them; "
                   "export it in the shell that submits: the job inherits it")
    for name in cluster.sbatch:
        if name in _OURS:
            yield f"cluster.sbatch.{name}: nvlm submit sets --{name} itself"
        elif not re.fullmatch(r"[a-z][a-z-]+", name):
            yield f"cluster.sbatch.{name}: no option of sbatch; write its long name, such as cluster.sbatch.switches=1"
    yield from (f"cluster.{name}: {value!r} must be one line" for name, value in vars(cluster).items()
                if isinstance(value, str) and not value.isprintable())


def _choices(cluster: Cluster) -> Iterator[str]:
    for key, value, allowed in (("launcher", cluster.launcher, LAUNCHERS),
                                ("container.runtime", cluster.container.runtime, RUNTIMES)):
        if value not in allowed:
            yield f"cluster.{key}: {value!r} is none of {', '.join(allowed)}{suggestion(value, list(allowed))}"


def _amounts(cluster: Cluster) -> Iterator[str]:
    for key, least in (("gpus_per_node", 0), ("signal_s", 1), ("max_requeues", 0), ("sweep_at_once", 0), ("evaluate_nodes", 0),
                       ("processes_per_node", 1), ("cpus_per_process", 1)):
        value = getattr(cluster, key)
        if value is not None and value < least:
            yield f"cluster.{key}={value} must be at least {least}"
    if cluster.signal_s > _LONGEST_LEAD:
        yield f"cluster.signal_s={cluster.signal_s} is more than the {_LONGEST_LEAD} s that Slurm knows"
    if cluster.gpus_per_node == 0 and cluster.processes_per_node is None:
        yield "cluster.gpus_per_node=0 and no cluster.processes_per_node: say how many ranks a node gets"
    if 0 < cluster.gpus_per_node < (cluster.processes_per_node or 0):
        yield (f"cluster.processes_per_node={cluster.processes_per_node} is more than "
               f"cluster.gpus_per_node={cluster.gpus_per_node}: a rank needs a GPU of its own")
    if cluster.gpus_per_node and not cluster.exclusive and cluster.cpus_per_process is None:
        yield "cluster.exclusive=false needs cluster.cpus_per_process: Slurm would give all ranks of a node one CPU"
    if cluster.memory is not None and not _MEMORY.match(cluster.memory):
        yield f"cluster.memory={cluster.memory}: expected a number of megabytes or one with K, M, G or T, such as 900G"
    limit = seconds_of(cluster.time)
    if limit is None:
        yield (f"cluster.time={cluster.time}: expected minutes, HH:MM:SS, D-HH or D-HH:MM:SS, such as 24:00:00 or 2-00 "
               "(in YAML with quotes)")
    elif limit <= cluster.signal_s:
        yield (f"cluster.time={cluster.time} is {limit} s and the run would be asked to stop "
               f"cluster.signal_s={cluster.signal_s} s before its end: it would not train at all")


def _container(container: Container) -> Iterator[str]:
    if container.runtime != "none" and not container.image:
        yield f"cluster.container.runtime={container.runtime} needs cluster.container.image"
    if container.runtime == "none" and container.image:
        yield f"cluster.container.image={container.image} needs cluster.container.runtime, pyxis or apptainer"
    for mount in container.mounts:
        parts = mount.split(":")
        if not all(part.startswith("/") for part in parts[:2]) or len(parts) > 3 or parts[2:] not in ([], ["ro"], ["rw"]):
            yield f"cluster.container.mounts: {mount!r}: expected /folder, /outside:/inside or /outside:/inside:ro"
