"""Whether a run used each sample exactly as often as planned: its records against the order that its configuration names.

`samples.jsonl` says which ids every step took; the order (data/order.py) says which it should have taken. Both are compared slot by
slot, whatever was killed, resumed or moved to another layout in between. Nothing is decoded; shards must lie where the run had them.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data_prep import tiny
from nvlm_train.config.dump import runs_from_file
from nvlm_train.config.schema import Run
from nvlm_train.data.loader import build_order
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import ConfigError
from nvlm_train.training.logs import SAMPLES, parse_row

SHOWN = 10      # differences told of a stage; all are counted


@dataclass
class Use:
    """What a source gave. samples: in the source; slots: taken from it, refused ones included; least, most: how often one sample was
    taken."""

    samples: int
    slots: int = 0
    refused: Counter = field(default_factory=Counter)
    least: int = 0
    most: int = 0


@dataclass
class StageAudit:
    """One stage. problems: the first differences from the plan, for a person; wrong: how many there are."""

    stage: str
    steps: int
    planned_steps: int
    uses: dict[str, Use]
    problems: list[str] = field(default_factory=list)
    wrong: int = 0

    def object_to(self, problem: str) -> None:
        self.wrong += 1
        if len(self.problems) < SHOWN:
            self.problems.append(problem)


def audit(run_dir: Path) -> list[StageAudit]:
    """Compare every recorded step of every stage with the plan. Raises ConfigError if this is no run, DataError for its shards."""
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"{run_dir} is no run directory: it holds no config.yaml")
    if not (run_dir / SAMPLES).is_file():
        raise ConfigError(f"{run_dir} holds no {SAMPLES}: nothing was trained there, or its records were removed")
    stages = {run.stage: _Auditor(run) for run in runs_from_file(run_dir / "config.yaml")}
    for row in _rows(run_dir / SAMPLES):
        if row.get("stage") in stages:
            stages[row["stage"]].take(row)
    return [auditor.result() for auditor in stages.values()]


def _rows(path: Path) -> Iterator[dict]:
    """One row at a time: a long run's records are larger than memory."""
    with open(path, "rb") as file:
        for line in file:
            if (row := parse_row(line)) is not None:
                yield row


class _Auditor:
    """Takes one stage's rows as they come, and compares each with the plan."""

    def __init__(self, run: Run) -> None:
        self._batch = run.train.global_batch
        self._folders = [ShardFolder(tiny.resolve(source.path), name) for name, source in run.data.blend.items()]
        self._order = build_order(run, self._folders)
        self._taken = [np.zeros(len(folder), dtype=np.int32) for folder in self._folders]
        self._found = StageAudit(run.stage, 0, run.train.steps, {folder.source: Use(len(folder)) for folder in self._folders})

    def take(self, row: Mapping) -> None:
        found, expected = self._found, self._found.steps + 1
        if row.get("step") != expected:
            found.object_to(f"step {row.get('step')} is recorded where step {expected} belongs: steps are missing, or were taken twice")
        found.steps = int(row["step"])
        first, ids = (found.steps - 1) * self._batch, row["ids"]
        if row.get("first_slot") != first or len(ids) != self._batch:
            found.object_to(f"step {found.steps} holds {len(ids)} slots from {row.get('first_slot')}; planned are {self._batch} from {first}")
        picks = self._order.between(first, first + self._batch)
        for n, (pick, used) in enumerate(zip(picks, ids), start=first):
            folder = self._folders[pick.source]
            planned = f"{folder.source}/{folder.key(pick.sample)}"
            if used != planned:
                found.object_to(f"slot {n} took {used}; planned is {planned}")
                continue
            use = found.uses[folder.source]
            use.slots += 1
            self._taken[pick.source][pick.sample] += 1
            if reason := row.get("refused", {}).get(str(n)):
                use.refused[reason] += 1

    def result(self) -> StageAudit:
        for use, counts in zip(self._found.uses.values(), self._taken, strict=True):
            use.least, use.most = int(counts.min()), int(counts.max())
        return self._found


def audit_command(run_dir: Path, as_json: bool = False) -> int:
    """`nvlm data audit RUN`. Exit code: 0 all as planned, 1 not."""
    stages = audit(run_dir)
    if as_json:
        print(json.dumps([_plain(stage) for stage in stages], indent=2))
    else:
        _show(stages, Console(highlight=False, soft_wrap=True))
    return int(any(stage.wrong for stage in stages))


def _plain(stage: StageAudit) -> dict:
    uses = {name: {"samples": use.samples, "slots": use.slots, "refused": dict(use.refused), "least": use.least, "most": use.most}
            for name, use in stage.uses.items()}
    return {"stage": stage.stage, "steps": stage.steps, "planned_steps": stage.planned_steps, "wrong": stage.wrong,
            "problems": stage.problems, "sources": uses}


def _show(stages: Sequence[StageAudit], console: Console) -> None:
    for stage in stages:
        title = f"{stage.stage}: {stage.steps:,} of {stage.planned_steps:,} steps"
        table = Table("source", "samples", "slots", "refused", "times each sample was taken", title=title, title_justify="left")
        for name, use in stage.uses.items():
            refused = ", ".join(f"{count:,} {reason}" for reason, count in sorted(use.refused.items())) or "0"
            times = f"{use.least:,}" if use.least == use.most else f"{use.least:,} to {use.most:,}"
            table.add_row(name, f"{use.samples:,}", f"{use.slots:,}", refused, times)
        console.print(table)
        if stage.wrong:
            console.print(f"{stage.wrong:,} differences from the plan, the first:", style="red")
            for problem in stage.problems:
                console.print(f"  {problem}", markup=False)
        else:
            console.print("Every slot holds the sample that was planned for it, none is missing and none was taken twice.")
