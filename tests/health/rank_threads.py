"""Several ranks as threads of one process, over one store in memory: quick, and each can be made to differ."""

import threading
from collections.abc import Callable

import torch.distributed as dist

from nvlm_train.health.facts import Facts
from nvlm_train.parallel.job import Job, Place


def facts(rank: int, host: str = "", **changes) -> Facts:
    """A rank of two nodes with two ranks each."""
    known = {"local_rank": rank % 2, "world": 4, "pid": 1000 + rank, "born": 0.0,
             "versions": {"nvlm_train": "0.1, source abc", "torch": "2.13.0", "Python": "3.11.7"}}
    return Facts(rank=rank, host=host or f"node-{'ab'[rank // 2 % 2]}", **{**known, **changes})


def on_ranks(work: Callable[[Job], object], ranks: int, absent: tuple[int, ...] = ()) -> list:
    """What `work` returned, or the exception that it raised, on every rank that is not absent (None there)."""
    store, results = dist.HashStore(), [None] * ranks

    def run(rank: int) -> None:
        try:
            results[rank] = work(Job(Place(rank=rank, world=ranks, host="node-a", port=1), store))
        except Exception as error:  # noqa: BLE001 (the test looks at it)
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(ranks) if rank not in absent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a rank hangs"
    return results
