"""A sweep on a real Slurm: its tasks share one job number, and each is stopped and started again by itself."""

import pytest
from slurm_cluster import until
from submitted import Submitted

from nvlm_train.training.status import read_next
from tests.faults.jobs import rows

pytestmark = [pytest.mark.full, pytest.mark.distributed]


def test_one_task_of_a_sweep_starts_again_and_the_other_hears_nothing(cluster, tmp_path):
    """Slurm knows the last task by the number of the whole array: a requeue of that number would be everyone's."""
    run = Submitted(cluster, tmp_path / "submitted")
    run.submit("stage=pretrain", "train.steps=5000", "sweep.train.seed=1,2", "cluster.launcher=srun", nodes=1)
    tasks = [f"{run.number}_{index}" for index in (0, 1)]
    folders = [run.run_dir / "0-train.seed=1", run.run_dir / "1-train.seed=2"]
    until(lambda: all(rows(folder) for folder in folders), 300, "a step of both")
    assert cluster.job(tasks[1])["JobId"] == run.number
    cluster.ask("scancel", "--batch", "--signal=USR1", tasks[1])
    until(lambda: cluster.job(tasks[1])["Restarts"] == "1", 120, lambda: str(cluster.job(tasks[1])))
    assert (read_next(folders[1]), read_next(folders[0])) == ("requeue", None)
    stopped = len(rows(folders[1]))
    cluster.lift_hold(tasks[1])
    until(lambda: len(rows(folders[1])) > stopped, 300, "a step after the restart")
    assert [row["step"] for row in rows(folders[1])] == list(range(1, len(rows(folders[1])) + 1))
    assert (cluster.job(tasks[0])["JobState"], cluster.job(tasks[0])["Restarts"]) == ("RUNNING", "0")
    cluster.ask("scancel", run.number)
    until(lambda: not cluster.ask("squeue", "-h", f"--jobs={run.number}", "-o", "%T"), 60, "the end of both")
