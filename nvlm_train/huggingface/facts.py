"""Reading a config.json so that everything wrong with it is found, not only the first thing."""

from collections.abc import Mapping, Sequence
from typing import Any

from nvlm_train.errors import ConfigError


class Facts:
    """A config.json (or a part of one) while it is read. Wrong values are noted and stood in for; `check` tells them all."""

    def __init__(self, config: Mapping[str, Any], where: str):
        self.config, self.where = config, where
        self.problems: list[str] = []

    def note(self, problem: str) -> None:
        self.problems.append(f"{self.where}: {problem}")

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default where there is none or null, as the library that wrote the file has it."""
        value = self.config.get(key)
        return default if value is None else value

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.get(key, default)
        if value is None:
            self.note(f"{key} is missing")
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.note(f"{key} is {value!r}, not a positive whole number")
        else:
            return value
        return 1

    def number(self, key: str, default: float) -> float:
        value = self.get(key, default)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        self.note(f"{key} is {value!r}, not a number")
        return default

    def switch(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.note(f"{key} is {value!r}, neither true nor false")
        return bool(value)

    def part(self, key: str) -> Mapping[str, Any]:
        """A table inside the table; an empty one where there is none."""
        value = self.get(key, {})
        if isinstance(value, Mapping):
            return value
        self.note(f"{key} is {value!r}, not a table")
        return {}

    def only(self, key: str, allowed: Sequence[Any], default: Any, reason: str) -> Any:
        """A value that has to be one of a few. reason: why another is refused."""
        value = self.get(key, default)
        if value not in allowed:
            self.note(f"{key}={value!r} is not implemented ({reason}); {' or '.join(map(repr, allowed))} is")
            return allowed[0]
        return value

    def check(self) -> None:
        if self.problems:
            raise ConfigError(self.problems)
