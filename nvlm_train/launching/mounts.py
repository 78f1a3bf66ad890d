"""Which folders a job's container sees, and which of the run's it would miss."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from nvlm_train.config.cluster import Container
from nvlm_train.config.inputs import local_inputs
from nvlm_train.config.schema import Run

_ADD = "add one to cluster.container.mounts"


def mounts_of(container: Container, workdir: Path) -> list[str]:
    """OUTSIDE:INSIDE[:ro] of every folder. The job's own is last: it may lie in one of the site's that is read only."""
    return [*(mount if ":" in mount else f"{mount}:{mount}" for mount in container.mounts), f"{workdir}:{workdir}"]


def unmounted(runs: Sequence[Run], run_dir: Path, workdir: Path, container: Container) -> Iterator[str]:
    """A sentence for each folder of the runs that lies in none of the container's."""
    if container.runtime == "none":
        return
    mounts = [mount.split(":") for mount in mounts_of(container, workdir)]
    # The batch script, outside, reads what the run writes, inside: under one name.
    writable = [outside for outside, inside, *mode in mounts if outside == inside and mode != ["ro"]]
    if not any(run_dir.is_relative_to(folder) for folder in writable):
        yield (f"run.dir={run_dir} is in none of the folders that the container may write under the same name "
               f"({', '.join(writable)}): {_ADD}")
    seen = [inside for _, inside, *_ in mounts]
    for key, path in (item for run in runs for item in local_inputs(run).items()):
        if not any((workdir / path).is_relative_to(folder) for folder in seen):
            yield f"{key}={workdir / path} is in none of the folders that the container sees ({', '.join(seen)}): {_ADD}"
