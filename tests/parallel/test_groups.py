"""A layout's groups come and go with the engine that needs them."""

import threading
from pathlib import Path

from nvlm_train.config.schema import Layout
from nvlm_train.parallel import groups
from nvlm_train.parallel.device import choose_device


def test_groups_leave_neither_threads_nor_memory_behind():
    groups.start(choose_device("cpu"), 60)
    kept = []
    for _ in range(3):
        groups.lay_out(Layout(), seed=1)
        during = _threads()
        groups.clear()
        kept.append(_threads())
        assert during - kept[-1] > 20, "gloo has threads for every group"
    groups.stop()
    groups.clear()      # as a test's teardown may
    assert kept[0] == kept[1] == kept[2]


def test_a_job_that_is_left_takes_its_groups_along():
    for _ in range(2):
        groups.start(choose_device("cpu"), 60)
        groups.lay_out(Layout(), seed=1)
        groups.stop()


def _threads() -> int:
    """Of this process, those of C++ too."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()
