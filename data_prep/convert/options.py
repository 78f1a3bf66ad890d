"""Options of converters: checked against the fields of the family's class, and given their types, from a command line or YAML alike."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nvlm_train.config.typed import suggestion
from nvlm_train.errors import DataError

GIVEN = ("root", "name")    # fields that are arguments of their own


def options_of(kind: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(kind) if field.name not in GIVEN}


def typed(family: str, kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the class takes them. Raises DataError, naming all that is wrong: unknown, missing, of a wrong kind."""
    known, hints, problems, values = options_of(kind), get_type_hints(kind), [], {}
    for name, value in options.items():
        if name not in known:
            near = suggestion(name, list(known)) or f"; it has {', '.join(known)}"
            problems.append(f"{family} has no option {name!r}{near}")
            continue
        try:
            values[name] = _as(hints[name], value)
        except ValueError as error:
            problems.append(f"{family}: {name} is {error}, found {value!r}")
    without = [name for name, field in known.items() if field.default is dataclasses.MISSING and name not in options]
    if without:
        problems.append(f"{family} needs {', '.join(f'{name}=…' for name in without)}")
    if problems:
        raise DataError("\n".join(problems))
    return values


def _as(hint: Any, value: Any) -> Any:
    """Raises ValueError with what is needed."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"one of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, (list, tuple)) and parts and all(isinstance(part, str) and part.strip() for part in parts):
            return tuple(part.strip() for part in parts)
        raise ValueError("one text or several, a,b")
    if hint is int:
        if isinstance(value, (int, str)) and str(value).isdecimal():
            return int(value)
        raise ValueError("a whole number from 0 on")
    if isinstance(value, str):
        return value
    raise ValueError("a text")


def told(family: str, kind: type) -> str:
    """The options of a family on one line: needed ones first, then those with defaults."""
    parts = []
    for name, field in options_of(kind).items():
        if field.default is dataclasses.MISSING:
            parts.insert(0, f"{name}=…")
        else:
            parts.append(name)
    return f"{family}: {', '.join(parts)}"
