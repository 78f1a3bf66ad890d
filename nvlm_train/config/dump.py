"""A resolved configuration as text, and back. What is written never holds a secret; what is read never runs code."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from nvlm_train.config.schema import Run
from nvlm_train.config.typed import build
from nvlm_train.errors import ConfigError, first_line
from nvlm_train.redaction import REDACTED, is_secret, redact

__all__ = ["REDACTED", "as_tree", "from_file", "is_secret", "redact", "runs_from_file", "to_json", "to_yaml"]


def as_tree(runs: Run | Sequence[Run]) -> dict:
    """Plain nested dictionaries, redacted: one object for one stage, {"pretrain": …, "sft": …} for several."""
    if isinstance(runs, Run):
        return redact(dataclasses.asdict(runs))
    if len(runs) == 1:
        return as_tree(runs[0])
    return {run.stage: as_tree(run) for run in runs}


def to_json(runs: Run | Sequence[Run]) -> str:
    return json.dumps(as_tree(runs), indent=2, ensure_ascii=False)


def to_yaml(runs: Run | Sequence[Run]) -> str:
    """YAML that `from_file` reads back to equal runs (but for what was redacted)."""
    return yaml.safe_dump(as_tree(runs), sort_keys=False, allow_unicode=True, width=130)


def runs_from_file(path: str | Path) -> list[Run]:
    """All stages of a `config.yaml` that `to_yaml` wrote, in order. Raises ConfigError for anything else."""
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); a run keeps its configuration in config.yaml") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a resolved configuration ({first_line(error)})") from error
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(f"{path}: not a resolved configuration (it holds no settings)")
    stages = [tree] if "stage" in tree else list(tree.values())
    try:
        return [build(Run, stage) for stage in stages]
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from error


def from_file(path: str | Path, stage: str | None = None) -> Run:
    """One stage of a `config.yaml`: the named one, else the last (of pretraining and SFT: SFT)."""
    runs = runs_from_file(path)
    found = [run for run in runs if stage in (None, run.stage)]
    if not found:
        raise ConfigError(f"{path}: holds {', '.join(run.stage for run in runs)}, not {stage}")
    return found[-1]
