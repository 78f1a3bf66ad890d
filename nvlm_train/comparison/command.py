"""`nvlm compare`: train what is missing, ask what is missing, put it all on one page."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nvlm_train.comparison import figures
from nvlm_train.comparison.designs import Design, Job, designs_of, jobs_of, processes_of
from nvlm_train.comparison.fairness import ALL, differences, refuse_unfair
from nvlm_train.comparison.measure import measure
from nvlm_train.comparison.page import write_page
from nvlm_train.comparison.results import Outcome, results
from nvlm_train.comparison.running import finish, last_step, questions, refuse_absent_tasks, refuse_other_runs, scores_of
from nvlm_train.config.request import LONGEST, Comparison
from nvlm_train.errors import ConfigError
from nvlm_train.training.logs import METRICS, finite, write_atomically

RESULTS = "compare.json"


def compare_command(asked: Comparison, shared: Sequence[str], dry_run: bool = False, console: Console | None = None) -> int:
    """Compare designs; returns the exit code: 0, or 1 if a training or its questions failed (the rest is compared all the same).

    shared: settings of every design. Raises ConfigError before anything starts if the designs cannot be compared fairly.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("nvlm compare starts its own processes: start it without torchrun, and say how many by processes=N")
    root = Path(asked.dir)
    designs = designs_of(asked, shared)
    refuse_unfair(designs)
    refuse_absent_tasks(asked.tasks)
    processes = processes_of(designs, asked.processes)
    jobs = jobs_of(designs, asked.seeds, root)
    refuse_other_runs(jobs)
    if dry_run:
        console.print(_plan(designs, jobs, processes), markup=False)
        return 0
    failures = {}
    for number, job in enumerate(jobs, start=1):
        console.rule(f"{number}/{len(jobs)} {job.name}", align="left")
        failures[job.name] = finish(job, _questions(asked, job), processes, console)
        if failures[job.name]:
            console.print(f"  failed: {failures[job.name]}", style="red", markup=False)
        # Anew after each job: a page of what there is so far.
        found = _write(root, designs, [_outcome(asked, each, failures.get(each.name)) for each in jobs[:number]], processes)
    console.print(*tables(found))
    console.print(f"Results: {root / RESULTS}. Page: {root / 'compare.html'}")
    for failure in found["failed"]:
        console.print(f"{failure['design']}, seed {failure['seed']} failed and is left out: {root / failure['design']}", style="red")
    return 1 if found["failed"] else 0


def _questions(asked: Comparison, job: Job) -> dict:
    return questions(job, asked.tasks, asked.eval.limit, asked.eval.max_new_tokens or LONGEST)


def _outcome(asked: Comparison, job: Job, failure: str | None) -> Outcome:
    began = (job.folder / METRICS).is_file()
    return Outcome(job, measure(job.folder) if began else None, scores_of(job, _questions(asked, job)), failure)


def _write(root: Path, designs: Sequence[Design], outcomes: Sequence[Outcome], processes: int) -> dict:
    found = results(designs, outcomes, processes)
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(root / RESULTS, (json.dumps(finite(found), indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    write_page(root, found, outcomes)
    return found


def _plan(designs: Sequence[Design], jobs: Sequence[Job], processes: int) -> str:
    """What would be done, as text."""
    lines = [f"{len(jobs)} trainings, {processes} process{'es' if processes > 1 else ''} each"]
    for job in jobs:
        done = ", trained already" if last_step(job) else ""
        lines += [f"{job.name}{done}", f"  nvlm train {' '.join(job.words)}"]
    lines.append("differing settings")
    for found in differences(designs):
        told = ", ".join(f"{name} {value}" for name, value in found.values.items())
        lines.append(f"  {found.key}{'' if found.stage == ALL else f' ({found.stage})'}: {told}")
    return "\n".join(lines)


def tables(found: Mapping) -> list[Table]:
    """Scores, figures of every stage and costs, for the console."""
    blocks = [(f"scores, 95 % intervals: {figures.interval_note(found)}", figures.score_rows(found)),
              *((name, figures.stage_rows(found, stage)) for stage, name in figures.stages_of(found)),
              ("cost", figures.cost_rows(found))]
    made = []
    for title, rows in blocks:
        if rows:
            table = Table("", *found["designs"], title=title, title_justify="left")
            for row in rows:
                table.add_row(row.label, *row.values)
            made.append(table)
    return made
