"""wandb and TensorBoard, when asked for. Neither may ever stop or slow a run: each works in a thread of its own (`background`), and
a failure costs one warning. Main rank only."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from nvlm_train.config.schema import Run
from nvlm_train.training.background import Background
from nvlm_train.training.metrics import Sink
from nvlm_train.training.tensorboard_sink import TensorBoardSink
from nvlm_train.training.wandb_sink import WandbSink

# Of Slurm's variables, those that say where and as what a run ran.
_SLURM = {"id": "SLURM_JOB_ID", "name": "SLURM_JOB_NAME", "partition": "SLURM_JOB_PARTITION", "nodes": "SLURM_JOB_NODELIST",
          "restarts": "SLURM_RESTART_COUNT"}


def telemetry(runs: Sequence[Run], stage: Run, run_dir: Path, start_step: int, hosts: Sequence[str] = (),
              apart: str = "") -> list[Sink]:
    """The outside sinks that `stage` asks for. runs: all stages of this job, for the recorded configuration (without secrets);
    hosts: the machine of each rank; apart: for another process than the training, see `WandbSink`."""
    sinks: list[Sink] = []
    if stage.run.wandb != "off":
        job = job_facts(os.environ, hosts or [socket.gethostname()])
        sinks.append(Background("wandb", lambda: WandbSink(runs, stage, run_dir, start_step, job, apart)))
    if stage.run.tensorboard:
        sinks.append(Background("TensorBoard", lambda: TensorBoardSink(stage, run_dir, start_step, apart)))
    return sinks


def job_facts(environ: Mapping[str, str], hosts: Sequence[str]) -> dict:
    """Where a job runs: processes, machines, and its place in Slurm if it has one."""
    machines = list(dict.fromkeys(hosts))
    slurm = {name: environ[variable] for name, variable in _SLURM.items() if variable in environ}
    return {"processes": len(hosts), "machines": len(machines), "hosts": machines[:64], **({"slurm": slurm} if slurm else {})}
