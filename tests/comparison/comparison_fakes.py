"""A comparison without training: the logs that a training would leave, and a stand-in for starting one."""

import json
from pathlib import Path

from nvlm_train.comparison.designs import Job, designs_of, jobs_of
from nvlm_train.comparison.processes import ProcessFailed
from nvlm_train.config.dump import to_yaml
from nvlm_train.config.request import Comparison
from nvlm_train.engine.manifest import Manifest

SHORT = ["train.steps=4", "train.warmup_steps=1", "train.global_batch=2"]
TASK = {"accuracy": 0.75, "blanked": 0.5, "majority": 0.25, "questions": 4}


def comparison(root: Path, *recipes: str, **more) -> Comparison:
    return Comparison({recipe: (f"recipe={recipe}",) for recipe in recipes or ("nvlm_d_tiny", "nvlm_x_tiny")}, dir=str(root), **more)


def jobs(asked: Comparison) -> list[Job]:
    return jobs_of(designs_of(asked, SHORT), asked.seeds, Path(asked.dir))


def metrics_row(stage: str, step: int, **more) -> dict:
    """A row of metrics.jsonl: two samples in half a second on two devices."""
    return {"stage": stage, "step": step, "loss": 4.0 / step, "samples": 2, "refused": 0, "tokens": 30, "memory_tokens": 8,
            "step_s": 0.5, "samples_per_s": 4.0, "tflops": {"total": 0.003}, "devices": 2, "peak_memory_gib": 1.5, **more}


def leave_run(job: Job, steps: int | None = None) -> None:
    """What a training of the job leaves behind; of `steps` of its last stage if it did not come to the end."""
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "config.yaml").write_text(to_yaml(list(job.runs)), encoding="utf-8")
    with (job.folder / "metrics.jsonl").open("w") as metrics, (job.folder / "eval.jsonl").open("w") as evaluations:
        for run in job.runs:
            last = run.train.steps if steps is None or run is not job.runs[-1] else steps
            metrics.writelines(json.dumps(metrics_row(run.stage, step + 1)) + "\n" for step in range(last))
            evaluations.write(json.dumps({"stage": run.stage, "step": last, "kind": "validation", "loss": 1.5}) + "\n")
            leave_checkpoint(job.folder / "checkpoints" / run.stage / f"step-{last:08d}", run.stage, last, last * 2)


def leave_checkpoint(folder: Path, stage: str, step: int, cursor: int) -> None:
    if folder.exists():
        return
    folder.mkdir(parents=True)
    Manifest(save_id="x", step=step, stage=stage, cursor=cursor, fingerprint={}, config={}, files={}, contents={}).write(folder)


class Starter:
    """Takes the place of `run_module`: does at once what the processes would have done, and remembers what was asked of it."""

    def __init__(self, all_jobs: list[Job], failing: str = "") -> None:
        self.jobs, self.failing, self.started = {str(job.folder): job for job in all_jobs}, failing, []

    def __call__(self, words, processes, log, console) -> None:
        if words[0] == "nvlm_train":
            folder = next(word for word in words if word.startswith("run.dir=")).removeprefix("run.dir=")
        else:
            folder = words[1]
        job = self.jobs[folder]
        self.started.append((words[0], job.design.name, job.seed, processes))
        if job.design.name == self.failing:
            raise ProcessFailed("it ended with code 3")
        if words[0] == "nvlm_train":
            leave_run(job)
        else:
            step = Manifest.read(Path(words[2])).step
            Path(words[3]).write_text(json.dumps({"asked": json.loads(words[4]), "step": step, "tasks": {"shapes": TASK}}))
