"""Plain dictionaries to typed, frozen settings: strict, every problem reported, the nearest known key named.

Knows nothing of Hydra, YAML or recipes: it reads the dataclasses of `schema` (or any others) and nothing else.
"""

import difflib
import functools
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from nvlm_train.errors import ConfigError

ANY_NAME = "<name>"     # stands in a key path for the free names of a map, such as the sources of a blend

_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def build(cls: type, tree: dict) -> Any:
    """An instance of dataclass `cls` out of nested plain dictionaries; fields left out keep their defaults.

    Raises ConfigError with every unknown key and every value of a wrong type.
    """
    problems = list(unknown_keys(cls, tree))
    value = _read(cls, tree, "", problems)
    if problems:
        raise ConfigError(problems)
    return value


def unknown_keys(cls: type, tree: Any, prefix: str = "") -> Iterator[str]:
    """One sentence for each key of `tree` that `cls` does not have, naming the nearest key that it has.

    prefix is put before the keys as they are shown ("stages.sft."), not where they are looked up.
    """
    known = list(key_paths(cls))
    for path in _paths(tree):
        executable = next((part for part in path if part.startswith("_") and part.endswith("_")), None)
        if executable:
            yield f"{prefix}{'.'.join(path)}: {executable} is refused; settings hold values, they never name code to run"
        elif kind_at(cls, path) is None:
            yield f"{prefix}{'.'.join(path)}: unknown key{suggestion('.'.join(path), known, prefix)}"


def suggestion(word: str, known: list[str], prefix: str = "") -> str:
    """'; did you mean X?' for the nearest known word, or nothing when none is near. A key's last part may decide alone."""
    last = word.rsplit(".", 1)[-1]

    def nearness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, word, candidate).ratio()
        tail = difflib.SequenceMatcher(None, last, candidate.rsplit(".", 1)[-1]).ratio()
        return max(whole, 0.95 * tail) + 0.01 * whole

    best = max(known, key=nearness, default=None)
    return f"; did you mean {prefix}{best}?" if best is not None and nearness(best) >= 0.6 else ""


def key_paths(cls: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of `cls`, groups before what they hold; a map's free names are shown as <name>."""
    for name, kind in _kinds(cls).items():
        yield prefix + name
        inner = _optional(kind)[0]
        if typing.get_origin(inner) is dict:
            element = typing.get_args(inner)[1]
            yield f"{prefix}{name}.{ANY_NAME}"
            if is_dataclass(element):
                yield from key_paths(element, f"{prefix}{name}.{ANY_NAME}.")
        elif is_dataclass(inner):
            yield from key_paths(inner, f"{prefix}{name}.")


def kind_at(cls: type, path: tuple[str, ...]) -> Any:
    """The annotated type found at a key path of `cls`, or None where there is none."""
    kind = cls
    for part in path:
        kind = _optional(kind)[0]
        if typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        elif is_dataclass(kind) and part in _kinds(kind):
            kind = _kinds(kind)[part]
        else:
            return None
    return kind


def split_key(cls: type, key: str) -> tuple[str, ...]:
    """The path that a dotted key means. Names in a map of plain values may hold dots: lr_multipliers.language.*.norm*."""
    parts = tuple(key.split("."))
    for end in range(1, len(parts)):
        kind = _optional(kind_at(cls, parts[:end]))[0]
        if typing.get_origin(kind) is dict and not is_dataclass(typing.get_args(kind)[1]):
            return (*parts[:end], ".".join(parts[end:]))
    return parts


def is_group(kind: Any) -> bool:
    """Whether a value of this type is a group of settings with fixed names (and not a map with free ones)."""
    return is_dataclass(kind)


def by_name(kind: Any, value: Any) -> Any:
    """`value`, or {"name": value} where a mere word stands for a group that has a name: engine=deepspeed, or `engine: megatron` in
    a run's configuration from before there was more to say of it."""
    return {"name": value} if isinstance(value, str) and is_group(kind) and "name" in _kinds(kind) else value


def is_text(kind: Any) -> bool:
    return _optional(kind)[0] is str


@functools.cache
def _kinds(cls: type) -> dict[str, Any]:
    """Field -> type, of a dataclass. Kept: a run asks hundreds of times. Not to be changed."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _optional(kind: Any) -> tuple[Any, bool]:
    """(the type without None, whether None is allowed)."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        inner = [part for part in typing.get_args(kind) if part is not type(None)]
        return inner[0], True
    return kind, False


def _paths(tree: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all leaves; an empty group counts as a leaf."""
    if isinstance(tree, dict) and (tree or not prefix):
        for key, value in tree.items():
            yield from _paths(value, (*prefix, str(key)))
    else:
        yield prefix


def _read(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """`value` as type `kind`; what does not fit is added to `problems`."""
    kind, optional = _optional(kind)
    if value is None and optional:
        return None
    if is_dataclass(kind):
        return _read_group(kind, value, path, problems)
    if typing.get_origin(kind) is dict:
        return _read_map(typing.get_args(kind)[1], value, path, problems)
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            problems.append(_mismatch(path, value, f"a list, such as [{value}]"))
            return ()
        return tuple(_read(element, item, f"{path}[{index}]", problems) for index, item in enumerate(value))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        problems.append(_mismatch(path, value, _EXPECTED[kind] + (" or null" if optional else "")))
    return value


def _read_group(cls: type, value: Any, path: str, problems: list[str]) -> Any:
    value = by_name(cls, value)
    if not isinstance(value, dict):
        problems.append(_mismatch(path, value, f"a group of settings ({', '.join(_kinds(cls))})"))
        if _required(cls):      # cannot stand in for it while looking for more problems
            raise ConfigError(problems)
        return cls()
    inner = {
        name: _read(kind, value[name], f"{path}.{name}" if path else name, problems)
        for name, kind in _kinds(cls).items()
        if name in value
    }
    missing = [name for name in _required(cls) if name not in inner]
    if missing:
        raise ConfigError([*problems, *(f"{path}{'.' if path else ''}{name}: must be given" for name in missing)])
    return cls(**inner)


def _read_map(element: Any, value: Any, path: str, problems: list[str]) -> dict:
    if not isinstance(value, dict):
        problems.append(_mismatch(path, value, "a map of names to values"))
        return {}
    return {str(name): _read(element, item, f"{path}.{name}", problems) for name, item in value.items()}


def _required(cls: type) -> list[str]:
    return [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]


def _mismatch(path: str, value: Any, expected: str) -> str:
    hint = ""
    if expected.startswith("a whole number") and isinstance(value, float) and value.is_integer():
        hint = f"; write {int(value)}"
    elif expected.startswith("text") and not isinstance(value, (list, dict, type(None))):
        hint = f"; quote it: \"{value}\""
    got = _EXPECTED.get(type(value)) or {list: "a list", dict: "a group", type(None): "empty"}.get(type(value), "unknown")
    return f"{path or 'the configuration'}: expected {expected}, got {value!r} ({got}){hint}"
