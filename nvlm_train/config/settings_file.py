"""The YAML files that come with the package, and reading one, as a cluster or a benchmark has it."""

from pathlib import Path

import yaml

from nvlm_train.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent.parent


def read_settings(given: str, path: Path) -> dict:
    """The settings of a file, {} if it is empty. given: the word that led to it, for messages. Raises ConfigError."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{given}: {path} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{given}: {path} must hold settings, key: value")
    return tree


def recipes_dir() -> Path:
    """The folder of recipes: inside an installed package, else beside it in a checkout."""
    for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"no recipes in {_PACKAGE / 'recipes'} nor in {_PACKAGE.parent / 'recipes'}: reinstall nvlm-train")
