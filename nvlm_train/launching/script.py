"""A job as the text of its sbatch file. Every word that comes from outside is quoted for the shell."""

import shlex
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nvlm_train import __version__
from nvlm_train.config.cluster import Cluster
from nvlm_train.launching.jobs import Job
from nvlm_train.launching.mounts import mounts_of

_LINE = 118     # columns that a list of words may fill


def render(job: Job, site: str) -> str:
    """The sbatch file of `job`; site: how the cluster was named on the command line."""
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True,
                            lstrip_blocks=True, keep_trailing_newline=True)
    templates.filters["sh"] = lambda value: shlex.quote(str(value))
    return templates.get_template("evaluate.sbatch.j2" if job.evaluates else "job.sbatch.j2").render(
        job=job, cluster=job.cluster, site=site, version=__version__, options=sbatch_options(job),
        words=_wrapped([*job.words, *([] if job.variants else [f"run.dir={job.run_dir}"])], indent=4),
        container=_in_container(job), cpus=_cpus_per_task(job.cluster))


def sbatch_options(job: Job) -> list[str]:
    """The #SBATCH lines without their marker, in the order in which an administrator reads them."""
    cluster = job.cluster
    array = f"0-{len(job.variants) - 1}" + (f"%{cluster.sweep_at_once}" if cluster.sweep_at_once else "")
    tasks = 1 if cluster.launcher == "torchrun" else cluster.ranks_per_node
    optional = {
        "partition": cluster.partition, "account": cluster.account, "qos": cluster.qos, "reservation": cluster.reservation,
        "constraint": cluster.constraint, "nodes": job.nodes, "ntasks-per-node": tasks,
        "gpus-per-node": cluster.gpus_per_node or None, "cpus-per-task": _cpus_per_task(cluster), "mem": cluster.memory,
        "time": cluster.time, "signal": f"B:USR1@{cluster.signal_s}", "array": array if job.variants else None,
        "output": job.folder / f"{job.name}-{'%A_%a' if job.variants else '%j'}.out", "open-mode": "append",
        "chdir": job.workdir, "comment": cluster.comment,
    }
    lines = [f"--job-name={shlex.quote(job.name)}"]
    lines += [f"--{name}={shlex.quote(str(value))}" for name, value in optional.items() if value is not None]
    lines += ["--exclusive"] if cluster.exclusive else []
    lines.append("--requeue" if cluster.requeue else "--no-requeue")
    return lines + [f"--{name}" if value is None else f"--{name}={shlex.quote(value)}" for name, value in cluster.sbatch.items()]


def _cpus_per_task(cluster: Cluster) -> int | None:
    if cluster.cpus_per_process is None:
        return None
    return cluster.cpus_per_process * (cluster.ranks_per_node if cluster.launcher == "torchrun" else 1)


def _in_container(job: Job) -> str:
    """What stands between srun's own options and the command."""
    container = job.cluster.container
    mounts = mounts_of(container, job.workdir)
    if container.runtime == "pyxis":
        exported = ",".join(name for name, variable in job.cluster.env.items() if variable.value is not None)
        options = [f"--container-image={container.image}", f"--container-mounts={','.join(mounts)}",
                   f"--container-workdir={job.workdir}", "--no-container-mount-home"]
        return _wrapped([*options, *([f"--container-env={exported}"] if exported else [])], indent=8)
    if container.runtime == "apptainer":
        gpus = ["--nv"] if job.cluster.gpus_per_node else []
        binds = [f"--bind={mount}" for mount in mounts]
        return _wrapped(["apptainer", "exec", *gpus, "--no-home", *binds, f"--pwd={job.workdir}", container.image], indent=8)
    return ""


def _wrapped(words: list[str], indent: int) -> str:
    """Quoted words, as many on a line as fit; the lines are joined by a backslash unless they stand in an array."""
    lines = [""]
    for word in map(shlex.quote, words):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > _LINE - indent:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    joiner = f" \\\n{' ' * indent}"
    return joiner.join(lines)
