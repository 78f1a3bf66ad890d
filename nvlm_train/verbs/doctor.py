"""The verb `doctor`: what this machine has, or how a whole job does."""

from nvlm_train.errors import ConfigError
from nvlm_train.verbs.base import Verb, compose_runs, leave_job, log_to_stderr, rank


def _doctor(words: list[str], flags: set[str]) -> int:
    if "--distributed" in flags:
        return _distributed(words, as_json="--json" in flags)
    if words:
        raise ConfigError(f"nvlm doctor takes no settings without --distributed, got {' '.join(words)}")
    from nvlm_train import doctor
    report = doctor.examine()
    print(doctor.as_json(report) if "--json" in flags else doctor.as_text(report))
    return 0 if report.usable else 1


def _distributed(words: list[str], as_json: bool) -> int:
    runs = compose_runs(words) if words else []
    log_to_stderr()
    from nvlm_train.health import distributed
    report = distributed.examine_job(runs)
    if rank() == 0:
        print(distributed.as_json(report) if as_json else distributed.as_text(report))
    leave_job()
    return 0 if report.usable else 1


VERBS = {
    "doctor": Verb(_doctor, "what this machine has, and which path each part takes; with --distributed how a job does",
                   "Imports and checks what training needs; exit code 1 if something indispensable is missing.\n\n"
                   "--distributed, under torchrun or srun, asks every rank: versions, variables, clocks, GPUs, and how fast they talk.\n"
                   "recipe=NAME key=value … adds that run's directory, disk, tokenizer and shards. Exit code 1 if the job could not\n"
                   "train. Sample output: docs/health.md", ("--json", "--distributed")),
}
