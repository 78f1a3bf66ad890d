"""Recording some steps on this rank: the profiler, the model's marks, and the trace file that comes of them."""

import gzip
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nvlm_train.model.nvlm import Nvlm
from nvlm_train.training.logs import write_atomically
from nvlm_train.training.profile.marks import Marks
from nvlm_train.training.profile.parts import STEP
from nvlm_train.training.profile.times import spent, windows_of
from nvlm_train.training.profile.trace import read_trace

LONGEST = 15        # operations that are told


@dataclass(frozen=True)
class Measured:
    """What one rank did in the profiled steps. steps_s: seconds of each; components: component -> phase ("": none) -> seconds
    of all steps, which add up to those of `steps_s`; hidden_s: seconds of communication behind other work; operations: the
    longest, each with name, component, phase, calls and seconds; notes: what went wrong, in words."""

    steps_s: Sequence[float]
    components: dict[str, dict[str, float]]
    hidden_s: float
    operations: Sequence[dict]
    on_gpu: bool
    notes: Sequence[str] = field(default_factory=tuple)


class Session:
    """From making it to `stop` everything is recorded. stages: this rank's, as the engine has them."""

    def __init__(self, stages: Sequence[Nvlm], device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * self._on_gpu
        self._profiler = torch.profiler.profile(activities=kinds)
        self._told: list[tuple[float, float]] = []
        self._marks = Marks(stages)
        try:
            self._profiler.start()
        except RuntimeError:
            self._marks.remove()
            raise

    @property
    def steps(self) -> int:
        """Finished ones."""
        return len(self._told)

    def step_done(self, waited_s: float, worked_s: float) -> None:
        """Right after a step: seconds that it waited for data, and seconds from then until now. A GPU is let finish: its work
        is the step's."""
        with torch.profiler.record_function(STEP):
            if self._on_gpu:
                torch.cuda.synchronize()
        self._told.append((waited_s, worked_s))

    def stop(self) -> None:
        """Before anything else is done with what was recorded."""
        self._marks.remove()
        self._profiler.stop()

    def measured(self, file: Path) -> Measured:
        """After `stop`. Writes the trace (gzip) to `file`, if it can: where not, a note says so.

        Raises OSError, RuntimeError or ValueError if the trace cannot be had from the profiler.
        """
        content = self._exported()
        trace = read_trace(json.loads(content))
        windows = windows_of(trace, self._told)
        found = spent(trace, windows)
        components: dict[str, dict[str, float]] = {}
        for owner, microseconds in found.owners.items():
            if microseconds:
                components.setdefault(owner.component, {})[owner.phase] = microseconds / 1e6
        longest = sorted(found.operations.items(), key=lambda item: -item[1][1])[:LONGEST]
        operations = [{"name": name, "component": owner.component, "phase": owner.phase, "calls": calls, "seconds": length / 1e6}
                      for (name, owner), (calls, length) in longest]
        return Measured([(window.end - window.begin) / 1e6 for window in windows], components, found.hidden / 1e6, operations,
                        bool(trace.work), _kept(file, content))

    def _exported(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            return path.read_bytes()


def _kept(file: Path, content: bytes) -> list[str]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, gzip.compress(content, 6, mtime=0))
    except OSError as error:
        return [f"{file.name} could not be written ({error.strerror or error})"]
    return []
