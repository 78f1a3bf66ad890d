"""What a live view knows of a run at a moment: fed by the training thread, read by the one that draws."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nvlm_train.training.recent import Recent

EVENTS = 5          # lines of news in view
LOSSES = 2_000      # of the newest steps, for the curve


@dataclass
class Watched:
    """A stage under way.

    stages: (stage, finished steps, steps) of the job, in order. row: of the newest step. validation: the newest row of eval.jsonl.
    saved: (step, seconds that training stood still) of the newest checkpoint. examples: (step, right, asked).
    skipped, refused: steps and samples of this job. stopping: said once the run was asked to stop.
    """

    recipe: str
    stage: str
    stages: list[tuple[str, int, int]]
    row: Mapping | None = None
    recent: Recent = field(default_factory=Recent)
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=LOSSES))
    validation: Mapping | None = None
    saved: tuple[int, float] | None = None
    examples: tuple[int, int, int] | None = None
    events: deque[str] = field(default_factory=deque)
    skipped: int = 0
    refused: int = 0
    stopping: str = ""

    def step(self, row: Mapping) -> None:
        self.row = row
        self.recent.append(row)
        self.losses.append(row["loss"])
        self.skipped += bool(row["skipped"])
        self.refused += row["refused"]
        self.stages = [(name, row["step"] if name == self.stage else done, steps) for name, done, steps in self.stages]

    def answered(self, step: int, rows: Sequence[Mapping]) -> None:
        self.examples = (step, sum(row["correct"] is True for row in rows), len(rows))

    def happened(self, text: str) -> list[str]:
        """Adds to the news; returns those that no longer fit, to be kept elsewhere."""
        self.events.append(text)
        return [self.events.popleft() for _ in range(len(self.events) - EVENTS)]

    @property
    def seconds_left(self) -> float:
        """Of this stage, at the speed of the recent steps."""
        done, steps = next((done, steps) for name, done, steps in self.stages if name == self.stage)
        return (steps - done) * self.recent.mean("step_s")
