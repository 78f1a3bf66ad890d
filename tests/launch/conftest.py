"""The small Slurm cluster, one for each file of tests. Its logs are kept when a test fails."""

import pytest
from slurm_cluster import SlurmCluster, missing


@pytest.fixture(scope="module")
def cluster(request):
    if reason := missing():
        pytest.skip(f"a real Slurm is not tested: {reason}")
    failed = request.session.testsfailed
    with SlurmCluster() as slurm:
        yield slurm
        slurm.keep = request.session.testsfailed > failed
    if slurm.keep:
        print(f"\nlogs of the cluster: {slurm.folder}")
