"""How long work takes, that of a GPU included."""

import time
from collections.abc import Callable

import torch


def wait() -> None:
    """For what was handed to the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Of one go."""
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def fastest(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of several rounds."""
    return min(seconds(work) for _ in range(rounds))
