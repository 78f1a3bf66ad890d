"""The verb `submit`: a run as a Slurm job. Loads neither torch nor Megatron."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm_train.config.schema import Run
from nvlm_train.config.submission import take_submission
from nvlm_train.errors import ConfigError
from nvlm_train.verbs.base import SETTINGS, Verb, compose_runs

if TYPE_CHECKING:
    from nvlm_train.launching.jobs import Job


def _submit(words: list[str], flags: set[str]) -> None:
    from nvlm_train.config.cluster_file import compose_cluster
    from nvlm_train.launching.jobs import evaluation_job, plan_jobs
    from nvlm_train.launching.script import render

    asked, rest = take_submission(words)
    found, problems = [], []
    for compose_it in (lambda: compose_cluster(asked.cluster, asked.changes), lambda: compose_runs(rest)):
        try:
            found.append(compose_it())
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    cluster, runs = found
    jobs = plan_jobs(asked, cluster, rest, runs, Path.cwd())
    evaluation = evaluation_job(cluster, runs, jobs[0].run_dir, jobs[0].workdir)
    scripts = {job.script: render(job, asked.cluster) for job in [*jobs, *([evaluation] if evaluation else [])]}
    for path, text in scripts.items():
        print(f"# {path}:", file=sys.stderr, flush=True)
        print(text, end="", flush=True)
    for note in _notes(runs, jobs[0]):
        print(f"note: {note}", file=sys.stderr)
    if "--dry-run" not in flags:
        _hand_over(jobs, scripts, evaluation)


def _hand_over(jobs: Sequence["Job"], scripts: dict[Path, str], evaluation: "Job | None") -> None:
    from nvlm_train.launching import slurm

    first = jobs[0]
    slurm.check_partition(first)
    slurm.check_idle(list(scripts))
    first.folder.mkdir(parents=True, exist_ok=True)
    for path, text in scripts.items():
        path.write_text(text, encoding="utf-8")
        slurm.job_note(path).unlink(missing_ok=True)
    number = slurm.submit(first.script)
    log = first.folder / f"{first.name}-{number}{'_*' if first.variants else ''}.out"
    print(f"submitted: job {number}, {first.name}, {first.nodes} nodes, {first.world} ranks\n"
          f"  log     tail -F {log}\n"
          f"  queue   squeue --jobs={number}\n"
          f"  save, stop and start again   scancel --batch --signal=USR1 {number}\n"
          f"  cancel  scancel {number}")
    if evaluation:
        print(f"submitted: job {slurm.submit(evaluation.script)}, {evaluation.name}, {evaluation.nodes} nodes, {evaluation.world} ranks")


def _notes(runs: Sequence[Run], job: "Job") -> list[str]:
    notes = []
    if not Path(runs[0].run.dir).is_absolute():
        notes.append(f"run.dir={runs[0].run.dir} is taken as {job.run_dir}: every node must see that folder")
    if any(run.run.save_every == 0 for run in runs):
        notes.append("run.save_every=0: a rank that dies takes all steps since the stage's start with it; set run.save_every")
    return notes


VERBS = {
    "submit": Verb(_submit, "train as a Slurm job that requeues itself",
                   "nvlm submit recipe=NAME cluster=NAME nodes=N key=value …\n\n"
                   "Writes a batch script into RUN_DIR/slurm, shows it, and submits it.\n"
                   "cluster=NAME is recipes/cluster/NAME.yaml, or a YAML file of the site's own; cluster.KEY=VALUE changes one\n"
                   "of its settings: cluster.partition=gpu cluster.time=8:00:00 cluster.launcher=srun cluster.env.NCCL_DEBUG=INFO\n"
                   "cluster.chain=true makes two jobs of stage=all, the second submitted by the first when it is done.\n"
                   "cluster.evaluate_nodes=N adds a job of N nodes that asks its checkpoints benchmarks (docs/evaluating.md).\n"
                   "sweep.train.lr=1e-4,2e-5 sweep.train.seed=range(1,4) make an array of jobs, each with a folder of its own.\n"
                   f"{SETTINGS}\n\n"
                   "--dry-run shows the batch scripts, and stops. From zero to a requeueing job: docs/cluster.md",
                   ("--dry-run",)),
}
