"""The small Slurm itself: it runs steps on both nodes, requeues, and leaves nothing behind."""

import pytest
from slurm_cluster import SlurmCluster, missing, until

pytestmark = pytest.mark.distributed

JOB = """#!/bin/bash
trap 'echo "batch shell: USR1"; scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1
srun bash -c 'trap "echo $SLURMD_NODENAME: TERM; exit 75" TERM; echo "$SLURMD_NODENAME: start ${SLURM_RESTART_COUNT:-0}"; while :; do sleep 0.1; done' &
while kill -0 $!; do wait $!; done
[[ ${SLURM_RESTART_COUNT:-0} == 0 ]] && scontrol requeue "$SLURM_JOB_ID"
sleep 0.1
"""


def test_steps_signals_and_a_requeue(tmp_path):
    if reason := missing():
        pytest.skip(f"a real Slurm is not tested: {reason}")
    log, script = tmp_path / "job.log", tmp_path / "job.sh"
    script.write_text(JOB)
    log.touch()
    with SlurmCluster() as slurm:
        left, right = slurm.nodes
        number = slurm.ask("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--open-mode=append", f"--output={log}", str(script))

        def wait_for(*lines: str) -> None:
            until(lambda: all(line in log.read_text() for line in lines), 60, lambda: f"{lines} in:\n{log.read_text()}")

        wait_for(f"{left}: start 0", f"{right}: start 0")
        slurm.ask("scancel", "--batch", "--signal=USR1", number)
        wait_for("batch shell: USR1", f"{left}: TERM", f"{right}: TERM")
        assert 60 < slurm.lift_hold(number) < 130, "Slurm's own two minutes"
        wait_for(f"{left}: start 1", f"{right}: start 1")
        assert slurm.job(number)["Restarts"] == "1"
        slurm.kill_node(right)
        assert not slurm.processes(right) and slurm.processes(left)
    assert not slurm.processes() and not slurm.folder.exists()
