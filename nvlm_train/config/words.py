"""Words of the command line that belong to a verb and not to a run: `group.key=value`, read by the kind of the setting."""

from collections.abc import Sequence
from dataclasses import fields

from nvlm_train.config.typed import key_paths, suggestion
from nvlm_train.errors import ConfigError


def take_group(words: Sequence[str], group: str, settings: type) -> tuple[dict[str, int | float | str], list[str], list[str]]:
    """(what the group's words set, the other words, what is wrong). settings: a dataclass of text and numbers."""
    kinds = {each.name: str(each.type) for each in fields(settings)}
    found: dict[str, int | float | str] = {}
    rest, problems = [], []
    for word in words:
        key, equals, value = word.partition("=")
        name = key.removeprefix(f"{group}.")
        if not equals or name == key:
            rest.append(word)
        elif name not in kinds:
            problems.append(f"{key}: unknown key{suggestion(name, list(key_paths(settings)), f'{group}.')}")
        else:
            try:
                found[name] = read_number(key, value, whole="int" in kinds[name]) if "str" not in kinds[name] else value
            except ConfigError as error:
                problems += error.problems
    return found, rest, problems


def read_number(key: str, text: str, whole: bool = True) -> int | float:
    """Raises ConfigError for what is none."""
    try:
        return int(text) if whole else float(text)
    except ValueError as error:
        raise ConfigError(f"{key}: expected a {'whole ' if whole else ''}number, got {text!r}") from error
