"""A resolved configuration as text, and back. What is written never holds a secret; what is read never runs code."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nvlm_train.config.schema import Run
from nvlm_train.config.typed import build
from nvlm_train.errors import ConfigError

REDACTED = "[redacted]"

# As whole words of a key: `hub_token` is a secret, `max_tokens` and `tokenizer` are not.
_SECRET_KEY = re.compile(
    r"(^|[^a-z])(token|secrets?|passw(or)?d|passphrase|credentials?|api_?key|access_?key)($|[^a-z])", re.IGNORECASE)
_URL_LOGIN = re.compile(r"(\w+://)[^/@\s]+@")


def is_secret(name: str) -> bool:
    """Whether a key or an environment variable of this name is to be kept out of sight."""
    return bool(_SECRET_KEY.search(name))


def redact(tree: Any) -> Any:
    """A copy with the values of secret keys, and logins inside addresses, replaced."""
    if isinstance(tree, dict):
        return {key: REDACTED if _tells(str(key), value) else redact(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [redact(item) for item in tree]
    return _URL_LOGIN.sub(rf"\1{REDACTED}@", tree) if isinstance(tree, str) else tree


def _tells(key: str, value: Any) -> bool:
    """Whether a value is a secret: that something is on or off (`class_token: true`) is none."""
    return is_secret(key) and value is not None and not isinstance(value, bool)


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
        raise ConfigError(f"{path}: not a resolved configuration ({str(error).splitlines()[0]})") from error
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
