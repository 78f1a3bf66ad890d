"""Doing what is missing of each job: train it, ask it its questions. What is done already is left alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from data_prep.tiny import BUILTIN
from nvlm_train.comparison.designs import Job
from nvlm_train.comparison.fairness import as_text, flat_settings
from nvlm_train.comparison.processes import ProcessFailed, run_module
from nvlm_train.config.dump import runs_from_file
from nvlm_train.config.schema import Run, RunSettings
from nvlm_train.engine.checkpoint import CheckpointStore
from nvlm_train.engine.manifest import Manifest
from nvlm_train.errors import ConfigError
from nvlm_train.training.start import checkpoints_of

SCORES = "scores.json"
_MAY_DIFFER = ("run.", "layout.", "data.workers", "data.prefetch")     # change nothing that a finished run has learned


def last_step(job: Job) -> Path | None:
    """The checkpoint that ends the job's last stage; None if it has not come so far."""
    run = job.runs[-1]
    newest = CheckpointStore(checkpoints_of(run), run.run.keep_last).latest()
    return newest if newest is not None and Manifest.read(newest).step >= run.train.steps else None


def scores_of(job: Job, asked: Mapping) -> dict | None:
    """Task -> figures (see `asking`) if the finished job has answered these very questions."""
    path, step = job.folder / SCORES, last_step(job)
    if step is None or not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    return kept["tasks"] if (kept["asked"], kept["step"]) == (dict(asked), Manifest.read(step).step) else None


def questions(job: Job, tasks: Mapping[str, str], limit: int, max_new_tokens: int) -> dict:
    """What the job is asked, as `asking` takes it. Without tasks: the validation data of its last stage; `tasks` may be empty."""
    own = {name: source.path for name, source in job.runs[-1].data.validation.items()}
    return {"tasks": dict(tasks) or own, "limit": limit, "max_new_tokens": max_new_tokens}


def refuse_absent_tasks(tasks: Mapping[str, str]) -> None:
    """Raises ConfigError for folders of questions that are not there: better now than after hours of training."""
    absent = [f"eval.tasks.{name}={path}: there is no such folder" for name, path in tasks.items()
              if not path.startswith(BUILTIN) and not Path(path).is_dir()]
    if absent:
        raise ConfigError(absent)


def refuse_other_runs(jobs: Sequence[Job]) -> None:
    """Raises ConfigError if a job's folder holds a run of other settings: its figures would be told as this design's."""
    problems = []
    for job in jobs:
        config = job.folder / "config.yaml"
        kept = {run.stage: run for run in runs_from_file(config)} if config.is_file() else {}
        for run in job.runs:
            if run.stage in kept and (other := _first_difference(kept[run.stage], run)):
                problems.append(f"{job.folder} holds a run of other settings ({run.stage}: {other}): choose another run.dir, or "
                                "move that folder away")
                break
    if problems:
        raise ConfigError(problems)


def _first_difference(there: Run, here: Run) -> str | None:
    before, now = (dict(flat_settings(replace(run, run=RunSettings()))) for run in (there, here))
    for key in [*now, *before]:
        if not key.startswith(_MAY_DIFFER) and before.get(key) != now.get(key):
            return f"{key} is {as_text(before.get(key))} there and {as_text(now.get(key))} here"
    return None


def finish(job: Job, asked: Mapping, processes: int, console: Console) -> str | None:
    """Train and ask the job where that is not done; returns what went wrong, None if nothing did."""
    log = job.folder.with_suffix(".log")
    try:
        if last_step(job) is None:
            run_module(["nvlm_train", "train", *job.words], processes, log, console)
        else:
            console.print("  is trained already", markup=False)
        step = last_step(job)
        if step is None:
            return f"training ended without a checkpoint of step {job.runs[-1].train.steps}; its output is in {log}"
        if asked["tasks"] and scores_of(job, asked) is None:
            words = [str(job.folder), str(step), str(job.folder / SCORES), json.dumps(asked)]
            run_module(["nvlm_train.comparison.asking", *words], processes, log, console)
    except ProcessFailed as failed:
        return str(failed)
    return None
