"""What a verb of the command line is, and what several of them share."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nvlm_train.config import rules
from nvlm_train.config.benchmark import Benchmark, load_benchmark
from nvlm_train.config.request import Request, take_request
from nvlm_train.config.schema import Run
from nvlm_train.engine.weights_folder import is_weights_folder
from nvlm_train.errors import ConfigError
from nvlm_train.redaction import RedactingFormatter, of_environment, redact_tracebacks


@dataclass(frozen=True)
class Verb:
    """One word of the command line: what it does, the flags it knows, and how to call it."""

    run: Callable[[list[str], set[str]], int | None]
    summary: str
    help: str
    flags: tuple[str, ...] = ()


def rank() -> int:
    """This process's place in its job, before anything is started."""
    return int(os.environ.get("RANK", "0"))


def compose_runs(overrides: list[str]) -> list[Run]:
    """Hydra is imported here: it is not needed for help, nor for a verb that does not exist."""
    from nvlm_train.config.compose import compose
    runs = compose(overrides)
    if rank() == 0:
        for note in dict.fromkeys(note for run in runs for note in rules.notes(run)):
            print(f"note: {note}", file=sys.stderr)
    return runs


def runs_and_request(words: list[str]) -> tuple[list[Run], Request]:
    """From `recipe=`, else from the run directory that `checkpoint=` lies in; other words are laid over either."""
    request, overrides = take_request(words)
    if request.checkpoint is None:
        raise ConfigError("no checkpoint given: add checkpoint=FOLDER, a run, a stage, a step, or imported weights")
    return runs_of(request.checkpoint, overrides), request


def runs_of(checkpoint: str, overrides: list[str]) -> list[Run]:
    """From `recipe=` among the overrides, else from the run directory that `checkpoint` lies in."""
    if any(word.startswith("recipe=") for word in overrides):
        return compose_runs(overrides)
    return from_checkpoint(checkpoint, overrides)


def from_checkpoint(checkpoint: str, overrides: list[str]) -> list[Run]:
    """The runs of the run directory at or above `checkpoint`; of a single stage where its folder is named. Of a folder of
    weights a run of their sizes."""
    from nvlm_train.config.compose import adjust, runs_from_file
    path = Path(checkpoint).expanduser().resolve()
    if not path.exists():
        raise ConfigError(f"checkpoint={checkpoint}: there is no such folder")
    if is_weights_folder(path):
        from nvlm_train.evaluation.weights_run import runs_of_weights
        return runs_of_weights(Path(checkpoint).expanduser(), overrides)
    for folder in (path, *path.parents[:3]):
        if (folder / "config.yaml").is_file():
            runs = runs_from_file(folder / "config.yaml")
            inside = path.relative_to(folder).parts
            return adjust([run for run in runs if run.stage in inside] or runs, overrides)
    raise ConfigError(f"checkpoint={checkpoint}: no config.yaml there or above; name a folder of a run, or add recipe=NAME")


def benchmark_named(name: str) -> Benchmark:
    """The benchmark of recipes/eval/NAME.yaml. Raises ConfigError."""
    from nvlm_train.config.compose import recipes_dir
    return load_benchmark(name, recipes_dir() / "eval")


def log_to_stderr() -> None:
    """Our own messages from the first rank, warnings from all, without secrets. Libraries' chatter stays out unless asked for (-W)."""
    secrets = of_environment(os.environ)
    redact_tracebacks(secrets)
    lines = logging.StreamHandler()
    lines.setFormatter(RedactingFormatter("%(message)s" if rank() == 0 else f"[rank {rank()}] %(message)s", secrets))
    logging.basicConfig(level=logging.WARNING, handlers=[lines])
    if rank() == 0:
        for ours in ("nvlm_train", "data_prep"):
            logging.getLogger(ours).setLevel(logging.INFO)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(megatron|torch)\.")
        # Megatron reads .grad of every tensor on the CPU path.
        warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")


def leave_job() -> None:
    """Only when all went well: after an error, leaving would wait for ranks that the launcher is about to end."""
    from nvlm_train.parallel.groups import stop
    stop()


SETTINGS = """\
recipe=NAME chooses a recipe; every other word changes one setting, for example
  stage=sft train.steps=500 layout.tensor=2 data.blend.mine.path=shards/mine stages.sft.train.lr=1e-5
All settings and their meaning: docs/configuration.md; their values: nvlm show-config recipe=NAME"""

CHECKPOINT = """\
checkpoint=FOLDER is a run, a stage or a step; the configuration is read from its run directory, and further words change
settings of it (run.device=cpu). Or it is a folder that nvlm import made; with recipe=NAME its components are put into that
model."""
