"""Slurm's own launcher, one task a process: srun names tasks in its own variables, everything else reads torchrun's.

Only what srun itself starts counts. A batch script and a shell inside `salloc` carry job-wide variables too (SLURM_NTASKS, in a
batch script even SLURM_PROCID=0); they are one process, whatever those say.
"""

import re
from collections.abc import MutableMapping

from nvlm_train.errors import ConfigError

# Below the ports that Linux hands out by itself (32768 and up), so that no passing connection holds it.
FIRST_PORT, PORTS = 16_384, 16_000
_STEPS = 16     # ports a job: steps that run at the same time get different ones


def adopt_srun(environment: MutableMapping[str, str]) -> bool:
    """Name this process as torchrun would, if srun started it as one of several tasks. Returns whether it did.

    RANK, WORLD_SIZE, LOCAL_RANK from the task's numbers; MASTER_ADDR the step's first host and MASTER_PORT made of the job's number,
    unless they are set. Nothing is changed under torchrun, or where srun started a single task.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")    # set by srun alone
    if "RANK" in environment or "SLURM_PROCID" not in environment or not tasks.isdecimal() or int(tasks) < 2:
        return False
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if "MASTER_ADDR" not in environment and not hosts:
        raise ConfigError("srun started this process, but SLURM_STEP_NODELIST is not set: set MASTER_ADDR to the host of rank 0")
    environment["RANK"], environment["WORLD_SIZE"] = environment["SLURM_PROCID"], tasks
    environment["LOCAL_RANK"] = environment.get("SLURM_LOCALID", "0")
    environment.setdefault("MASTER_ADDR", first_host(hosts or ""))
    environment.setdefault("MASTER_PORT", str(port_of(environment.get("SLURM_JOB_ID", "0"), environment.get("SLURM_STEP_ID", "0"))))
    return True


def first_host(hosts: str) -> str:
    """The first name in Slurm's list of hosts: `dgx[003-016,20],login1` gives dgx003, `r[1-2]n[01-04]` gives r1n01."""
    name = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts).group()
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", name)


def port_of(job: str, step: str) -> int:
    """A port that all tasks of a step agree on, and that two jobs on one host hardly share."""
    number = int(job) * _STEPS + int(step) % _STEPS if job.isdecimal() and step.isdecimal() else 0
    return FIRST_PORT + number % PORTS
