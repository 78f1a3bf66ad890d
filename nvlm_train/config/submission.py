"""What `nvlm submit` is asked beside a run's settings: the cluster, its nodes, and the values of a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from nvlm_train.errors import ConfigError


@dataclass(frozen=True)
class Submission:
    cluster: str                            # NAME of recipes/cluster/NAME.yaml, or the path of a YAML file
    nodes: int = 1
    changes: tuple[str, ...] = ()           # key=value words laid over the cluster's, without their `cluster.`
    sweep: dict[str, str] = field(default_factory=dict)     # setting -> its values, as they are written on the command line


def take_submission(words: Sequence[str]) -> tuple[Submission, list[str]]:
    """(what is asked, the other words, which are the run's). Raises ConfigError with every problem found."""
    name, nodes, changes, sweep = None, 1, [], {}
    rest, problems = [], []
    for word in words:
        key, equals, value = word.partition("=")
        group, _, setting = key.partition(".")
        if key == "cluster" and equals:
            name = value
        elif key == "nodes":
            if not value.isdecimal() or int(value) < 1:
                problems.append(f"nodes={value}: expected a whole number of at least 1")
            else:
                nodes = int(value)
        elif group == "cluster":
            changes.append(f"{setting}={value}" if equals else setting)
        elif group == "sweep":
            sweep[setting] = value
            if not setting or not value:
                problems.append(f"{word}: write the setting and its values, such as sweep.train.lr=1e-4,2e-5")
        else:
            rest.append(word)
    if not name:
        problems.insert(0, "no cluster given: add cluster=NAME of recipes/cluster, or cluster=FILE.yaml of your own")
    if problems:
        raise ConfigError(problems)
    return Submission(name, nodes, tuple(changes), sweep), rest
