"""Whether a run used each sample exactly as often as planned: its records against the order of its blends.

`samples.jsonl` says which ids every step took; the order (data/order.py) of the blends in `segments.json` says which it should have
taken. Both are compared slot by slot, whatever was killed, resumed or moved to another layout in between. Nothing is decoded; shards must lie where the run had them.
"""

import itertools
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
from nvlm_train.data.segments import order_of
from nvlm_train.data.shards import ShardFolder
from nvlm_train.errors import ConfigError, DataError
from nvlm_train.training.logs import SAMPLES, parse_row
from nvlm_train.training.run_dir import SEGMENTS, read_segments

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
    segments = read_segments(run_dir)
    if not segments:
        raise ConfigError(f"{run_dir} holds no {SEGMENTS}: which blends it was trained on is not known")
    stages = {run.stage: _Auditor(run, segments[run.stage]) for run in runs_from_file(run_dir / "config.yaml") if run.stage in segments}
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

    def __init__(self, run: Run, segments: Sequence[Mapping]) -> None:
        self._batch = run.train.global_batch
        self._folders = _open_folders(run, segments)
        shards = {name: tuple(entry.samples for entry in folder.entries) for name, folder in self._folders.items()}
        self._orders = [order_of(segment, shards) for segment in segments]
        self._taken = {name: np.zeros(len(folder), dtype=np.int32) for name, folder in self._folders.items()}
        self._found = StageAudit(run.stage, 0, run.train.steps, {name: Use(len(folder)) for name, folder in self._folders.items()})
        for before, after in itertools.pairwise(self._orders):
            gave = dict(zip((source.name for source in before.sources), before.drawn(after.start), strict=True))
            for name in gave.keys() & after.given.keys():
                if after.given[name] not in (gave[name], 0):    # 0: another folder took the name
                    self._found.object_to(f"the blend from slot {after.start:,} on lets {name} go on after {after.given[name]:,} samples; it "
                                          f"had given {gave[name]:,}")

    def take(self, row: Mapping) -> None:
        found, expected = self._found, self._found.steps + 1
        if row.get("step") != expected:
            found.object_to(f"step {row.get('step')} is recorded where step {expected} belongs: steps are missing, or were taken twice")
        found.steps = int(row["step"])
        first, ids = (found.steps - 1) * self._batch, row["ids"]
        if row.get("first_slot") != first or len(ids) != self._batch:
            found.object_to(f"step {found.steps} holds {len(ids)} slots from {row.get('first_slot')}; planned are {self._batch} from {first}")
        order = next(order for order in reversed(self._orders) if order.start <= first)
        picks = order.between(first, first + self._batch)
        for n, (pick, used) in enumerate(zip(picks, ids), start=first):
            name = order.sources[pick.source].name
            planned = f"{name}/{self._folders[name].key(pick.sample)}"
            if used != planned:
                found.object_to(f"slot {n} took {used}; planned is {planned}")
                continue
            use = found.uses[name]
            use.slots += 1
            self._taken[name][pick.sample] += 1
            if reason := row.get("refused", {}).get(str(n)):
                use.refused[reason] += 1

    def result(self) -> StageAudit:
        for name, counts in self._taken.items():
            self._found.uses[name].least, self._found.uses[name].most = int(counts.min()), int(counts.max())
        return self._found


def _open_folders(run: Run, segments: Sequence[Mapping]) -> dict[str, ShardFolder]:
    """Every source that a stage was trained on, by name. Raises DataError if one is not what it was."""
    folders: dict[str, ShardFolder] = {}
    for segment in reversed(segments):      # a name that was given to another folder is the later one's
        for name, about in segment["sources"].items():
            if name in folders:
                continue
            configured = run.data.blend.get(name)
            folders[name] = ShardFolder(tiny.resolve(configured.path) if configured else about["path"], name)
            if folders[name].fingerprint != about["content"]:
                raise DataError(f"the shards of {name} in {folders[name].name} are not those of the run: content "
                                f"{folders[name].fingerprint[:12]}…, the run's was {about['content'][:12]}…. Restore them to audit it")
    return folders


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
