"""What is asked of Slurm from the shell that submits: which partitions there are, which jobs, and to take one."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from nvlm_train.config.cluster import seconds_of
from nvlm_train.config.typed import suggestion
from nvlm_train.errors import LaunchError
from nvlm_train.launching.jobs import Job

_PATIENCE_S = 60


def check_partition(job: Job) -> None:
    """Raises LaunchError if there is no such partition, or the job asks for more nodes or time than it has.

    Where sinfo does not answer nothing is known, and sbatch will say.
    """
    try:
        told = _slurm("sinfo", "--noheader", "--format=%P|%D|%l")
    except LaunchError:
        return
    partitions: dict[str, tuple[int, int | None]] = {}
    chosen = job.cluster.partition
    for line in told.split():
        name, nodes, limit = line.split("|")
        if name.endswith("*"):
            name = name[:-1]
            chosen = chosen or name
        partitions[name] = (partitions.get(name, (0, None))[0] + int(nodes), seconds_of(limit))
    if chosen is None:
        raise LaunchError(f"this Slurm has no default partition: add cluster.partition=NAME, one of {', '.join(partitions)}")
    # Slurm takes a list and uses whichever starts first: one that suits is enough.
    complaints = [complaint for name in chosen.split(",") if (complaint := _complaint(job, name, partitions))]
    if len(complaints) == len(chosen.split(",")):
        raise LaunchError("\n".join(complaints))


def _complaint(job: Job, name: str, partitions: dict[str, tuple[int, int | None]]) -> str | None:
    if name not in partitions:
        return (f"cluster.partition={name}: this Slurm has no such partition{suggestion(name, list(partitions))} "
                f"(sinfo shows {', '.join(partitions)})")
    nodes, limit = partitions[name]
    if job.nodes > nodes:
        return f"nodes={job.nodes}, but partition {name} has {nodes}: ask for fewer, or name another by cluster.partition"
    asked = seconds_of(job.cluster.time)
    if limit is not None and asked is not None and asked > limit:
        return (f"cluster.time={job.cluster.time} is {asked} s, but partition {name} allows {limit} s: a job is requeued and goes "
                "on, so take less")
    return None


def check_idle(scripts: Sequence[Path]) -> None:
    """Raises LaunchError if a job of one of these batch scripts, submitted earlier, is still queued or running."""
    for script in scripts:
        note = job_note(script)
        number = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
        if not number:
            continue
        try:
            states = _slurm("squeue", "--noheader", f"--jobs={number}", "--format=%T").split()
        except LaunchError:
            continue    # Slurm has forgotten it
        if states:
            raise LaunchError(f"job {number} ({states[0].lower()}) already trains in {script.parent.parent}: two would write over "
                              f"each other. Wait for it, end it by scancel {number}, or choose another run.dir")


def submit(script: Path) -> str:
    """The id of the new job, also put beside its script. Raises LaunchError with what sbatch said."""
    number = _slurm("sbatch", "--parsable", str(script)).strip().partition(";")[0]
    job_note(script).write_text(number + "\n", encoding="utf-8")
    return number


def job_note(script: Path) -> Path:
    """Where the id of a script's newest job is kept."""
    return script.with_name(script.name + ".job")


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_PATIENCE_S)
    except FileNotFoundError:
        raise LaunchError(f"{command[0]} is not here: nvlm submit runs on a login node of a Slurm cluster (--dry-run anywhere). "
                          "Without Slurm start the ranks by launch/local.sh or launch/multinode.sh") from None
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{command[0]} did not answer within {_PATIENCE_S} s: is the controller up? (scontrol ping)") from None
    if done.returncode:
        told = (done.stderr or done.stdout).strip() or f"it ended with status {done.returncode}"
        raise LaunchError(f"{command[0]}: {told}")
    return done.stdout
