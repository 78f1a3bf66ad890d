"""A file of a cluster, and `key=value` words over it, as a typed `Cluster`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvlm_train.config.cluster import Cluster, problems
from nvlm_train.config.compose import files_of, read_value, recipes_dir, resolve
from nvlm_train.config.settings_file import read_settings
from nvlm_train.config.typed import is_text, kind_at, split_key, suggestion
from nvlm_train.errors import ConfigError


def compose_cluster(name: str, changes: Sequence[str]) -> Cluster:
    """The cluster of recipes/cluster/NAME.yaml, or of a YAML file elsewhere, with `key=value` changes laid over it.

    `env.NAME=value` sets a variable and keeps its reason. Raises ConfigError with every problem found.
    """
    tree = _read(name)
    for change in changes:
        key, equals, raw = change.partition("=")
        keys = split_key(Cluster, key)
        keys = (*keys, "value") if len(keys) == 2 and keys[0] == "env" else keys
        _set(tree, keys, read_value(f"cluster.{change}", raw if equals else None, is_text(kind_at(Cluster, keys))))
    try:
        cluster = resolve(tree, Cluster)
    except ConfigError as error:
        raise ConfigError([f"cluster.{problem}" for problem in error.problems]) from error
    if found := list(problems(cluster)):
        raise ConfigError(found)
    return cluster


def _read(name: str) -> dict:
    own = name.endswith((".yaml", ".yml"))
    path = Path(name) if own else recipes_dir() / "cluster" / f"{name}.yaml"
    if not path.is_file():
        known = files_of("cluster")
        raise ConfigError(f"cluster={name}: there is no such {'file' if own else 'cluster'}{suggestion(name, known)} "
                          f"(known: {', '.join(known)}, or the path of a YAML file)")
    return read_settings(f"cluster={name}", path)


def _set(tree: dict, keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[keys[-1]] = value
