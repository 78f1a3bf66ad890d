"""What every reader gives: the records of a benchmark's public files, counted before they are read."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nvlm_train.errors import DataError
from nvlm_train.evaluation.readers.files import picture

Record = Mapping[str, Any]


class Records(Protocol):
    """Records in a fixed order, numbered from 0. where: the files, for messages."""

    where: str

    def count(self) -> int:
        """How many there are; cheap beside reading their pictures. Raises DataError: a file that cannot be read."""

    def rows(self, wanted: Collection[int]) -> Iterator[Record]:
        """The records of these numbers, ascending, with their pictures as bytes. Raises DataError."""


class Listed:
    """Records that are all in memory. image: a template of the file name, relative to `folder`, of each record's picture, which is
    read when the record is, and becomes its field `image`."""

    def __init__(self, where: str, records: Sequence[Record], folder: Path | None = None, image: str = ""):
        self.where, self._records, self._folder, self._image = where, records, folder, image

    def count(self) -> int:
        return len(self._records)

    def rows(self, wanted: Collection[int]) -> Iterator[Record]:
        for number in sorted(wanted):
            record = self._records[number]
            yield {**record, "image": picture(self._folder, filled(self._image, record, self.where))} if self._image else record


def filled(template: str, record: Record, where: str) -> str:
    """A template with fields of a record in it, such as `{image_id}.jpg`. Raises DataError."""
    try:
        return template.format_map(record)
    except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: {template!r} cannot be filled from a record with {', '.join(map(str, record))}: {error!r}") from error


def value_of(record: Record, name: str, where: str) -> Any:
    """A field of a record, `a.b` for b within a. Raises DataError that names the fields which are there."""
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            there = ", ".join(map(str, value)) if isinstance(value, Mapping) else f"a {type(value).__name__}"
            raise DataError(f"{where}: a record has no field {name!r}; it has {there}. These are not the files that the benchmark means, or "
                            "a newer version of them: compare with its recipe in recipes/eval")
        value = value[part]
    return value
