"""The verb that asks all checkpoints of a run, beside its training or after it."""

from pathlib import Path

from nvlm_train.errors import ConfigError
from nvlm_train.verbs.base import Verb, from_checkpoint, leave_job, log_to_stderr


def _eval_checkpoints(words: list[str], flags: set[str]) -> None:
    folders = [word for word in words if "=" not in word]
    if len(folders) != 1:
        raise ConfigError(f"nvlm eval-checkpoints RUN key=value … is the form, got {len(folders)} folders{': ' * bool(folders)}"
                          f"{', '.join(folders)}")
    if not (Path(folders[0]).expanduser() / "config.yaml").is_file():
        raise ConfigError(f"{folders[0]} is no run directory: it has no config.yaml")
    # The folder may have been moved since, or be named from elsewhere than where the run was started.
    here = f"run.dir={Path(folders[0]).expanduser().resolve()}"
    runs = from_checkpoint(folders[0], [*(word for word in words if "=" in word), here])
    log_to_stderr()
    from nvlm_train.evaluation.checkpoints import eval_checkpoints_command
    eval_checkpoints_command(runs, "--follow" in flags)
    leave_job()


VERBS = {
    "eval-checkpoints": Verb(
        _eval_checkpoints, "ask every checkpoint of a run what it was not asked yet",
        "nvlm eval-checkpoints RUN [evaluate.benchmarks=[NAME,…]] [evaluate.data.NAME=FOLDER] [evaluate.limit=N] key=value …\n\n"
        "Asks the benchmarks of the run's configuration (or those named here) of every checkpoint that has no score of them.\n"
        "Settings of the run may be changed for asking: layout.tensor=2 run.device=cpu. Several such jobs share the work.\n\n"
        "--follow goes on with checkpoints that are still to come, until the training has ended; the run should then have\n"
        "evaluate.at_checkpoints=false, or it asks them itself. docs/evaluating.md", ("--follow",)),
}
