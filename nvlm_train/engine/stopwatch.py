"""How long this rank's device was at work between two points of a step, without making it wait."""

import time

import torch


class Stopwatch:
    """On a GPU the device's own clock (its work is queued, so the host's says nothing), on a CPU the host's."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._began = self._ended = None

    def start(self) -> None:
        self._began, self._ended = self._now(), None

    def stop(self) -> None:
        self._ended = self._now()

    def read(self) -> float:
        """Seconds from the last `start` to the last `stop`; 0 where one of them is missing. The device must have come past both."""
        if self._began is None or self._ended is None:
            return 0.0
        return self._began.elapsed_time(self._ended) / 1000 if self._on_gpu else self._ended - self._began

    def _now(self):
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
