"""How long work takes, that of a GPU included, and on what."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

WARM = 2        # goes that are not counted


class Took(NamedTuple):
    """By the clock, and of the processor by all threads of this process."""

    seconds: float
    cpu_seconds: float


def wait() -> None:
    """For what was handed to the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def took(work: Callable[[], object]) -> Took:
    """One go."""
    wait()
    began, cpu = time.perf_counter(), time.process_time()
    work()
    wait()
    return Took(time.perf_counter() - began, time.process_time() - cpu)


def seconds(work: Callable[[], object]) -> float:
    """Of one go, by the clock."""
    return took(work).seconds


def fastest(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of several rounds."""
    return min(seconds(work) for _ in range(rounds))


def timed(work: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each round, after `WARM` to warm up."""
    for _ in range(WARM):
        work()
    return [seconds(work) for _ in range(rounds)]


def name_of(device: torch.device) -> str:
    """A GPU's as its driver gives it, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
