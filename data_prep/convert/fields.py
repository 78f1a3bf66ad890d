"""Takes values out of records of somebody else's making, by names that the user gives."""

import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nvlm_train.errors import SampleRefused

NAME = "_name"      # field that holds an object's own name among others
_ABSENT = object()


def lookup(record: Any, path: str, default: Any = None) -> Any:
    """`record[a][b]` for `a.b`; a whole name with a dot in it is tried first, and numbers index lists. `default` if absent."""
    if isinstance(record, Mapping) and path in record:
        return record[path]
    value = record
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return default
    return value


def required(record: Any, path: str) -> Any:
    """Raises SampleRefused("missing_field") naming the fields that there are."""
    value = lookup(record, path, _ABSENT)
    if value is _ABSENT:
        there = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
        raise SampleRefused("missing_field", f"no field {path!r}; there are: {there}")
    return value


def text(value: Any, what: str) -> str:
    """A value as stripped text. Numbers and yes/no become words. Raises SampleRefused: empty_text, bad_field."""
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (int, float)):
        value = str(value)
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise SampleRefused("bad_field", f"{what} is {type(value).__name__}, text is needed: {str(value)[:80]}")
    value = value.replace("\0", "").strip()
    if not value:
        raise SampleRefused("empty_text", f"{what} is empty")
    return value


def required_text(record: Any, path: str) -> str:
    """Raises SampleRefused: missing_field, empty_text, bad_field."""
    return text(required(record, path), path)


def items_of(record: Mapping, path: str) -> list[Mapping]:
    """Objects listed within a record, each with the plain fields of what holds it: `qas`, or `paragraphs/qas` for lists in lists.

    A name ending in `*` is an object of objects, whose own names they hold as `_name`. Without a path, the record alone.
    Raises SampleRefused("bad_field").
    """
    found = [record]
    for part in [part for part in path.split("/") if part]:
        found = [inner for outer in found for inner in _inside(outer, part)]
    return found


def _inside(outer: Mapping, part: str) -> list[Mapping]:
    value = lookup(outer, part.rstrip("*").rstrip("."))
    if part.endswith("*") and isinstance(value, Mapping):
        value = [{NAME: name, **item} if isinstance(item, Mapping) else item for name, item in value.items()]
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(item, Mapping) for item in value):
        raise SampleRefused("bad_field", f"{part} is to be a list of objects, found {str(value)[:80]}")
    plain = {name: held for name, held in outer.items() if not isinstance(held, (list, tuple, Mapping))}
    return [{**plain, **item} for item in value]


def answers(value: Any, what: str = "the answer") -> list[str]:
    """All answers a record gives, empty ones left out, at least one. A list may hold text, numbers, or objects of `answer` or
    `text`.

    Raises SampleRefused: empty_text, bad_field.
    """
    items = value if isinstance(value, (list, tuple)) else [value]
    items = [item.get("answer", item.get("text")) if isinstance(item, Mapping) else item for item in items]
    given = [text(item, what) for item in items if item is not None and str(item).strip()]
    if not given:
        raise SampleRefused("empty_text", f"{what} is empty")
    return given


def commonest(values: Iterable[str]) -> str:
    """The most frequent value; of several, the first given."""
    return Counter(values).most_common(1)[0][0]


def filled(template: str, record: Mapping) -> str:
    """A template such as `COCO_{split}_{image_id:012d}.jpg` with a record's fields. Raises SampleRefused: missing_field, bad_field."""
    out = []
    for literal, path, form, _ in string.Formatter().parse(template):
        out.append(literal)
        if path is not None:
            value = required(record, path)
            try:
                out.append(format(int(value) if form.endswith("d") else value, form))
            except (TypeError, ValueError) as error:
                raise SampleRefused("bad_field", f"{path} is {str(value)[:80]!r}, which does not fit {template!r}: {error}") from error
    return "".join(out)


def places(template: str) -> list[str]:
    """The fields that a template names."""
    return [path for _, path, _, _ in string.Formatter().parse(template) if path is not None]
