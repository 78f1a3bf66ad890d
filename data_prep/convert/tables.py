"""Records of files, whatever their format: JSON, JSON lines, CSV here; parquet and arrow in `arrow_tables.py`.

A table is cut into ranges of a fixed number of records, which processes work on alone. A file that cannot be read is an error; a
record that cannot be is a refusal in its place.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from data_prep.convert.fields import NAME
from data_prep.convert.files import fingerprint, load_json, signature
from nvlm_train.errors import DataError, SampleRefused

CUT = 5000          # records a unit: some minutes of work, and few enough units for a million records
FIRST_LINE = 1 << 20
Cut = tuple[int, int]
Row = tuple[int, Mapping | SampleRefused]


class Table(Protocol):
    """The records of one file, numbered from 0."""

    path: Path

    def cuts(self) -> Sequence[Cut]:
        """Ranges [start, stop) that together are all records. Raises DataError."""

    def rows(self, start: int, stop: int, fields: Sequence[str] | None = None) -> Iterator[Row]:
        """Number and record of a range that `cuts` gave; a record that cannot be read is a SampleRefused. fields: those needed."""

    def fingerprint(self) -> str:
        """Changes with the records."""


def regular_cuts(count: int) -> list[Cut]:
    return [(start, min(start + CUT, count)) for start in range(0, count, CUT)]


@dataclass(frozen=True)
class Listed:
    """Records made out of whole annotation files, the `sources`. load: makes them, or remembers them: a process asks often."""

    path: Path
    load: Callable[[], Sequence[Mapping]]
    sources: tuple[Path, ...]

    def cuts(self) -> list[Cut]:
        return regular_cuts(len(self.load()))

    def rows(self, start: int, stop: int, fields: Sequence[str] | None = None) -> Iterator[Row]:
        yield from enumerate(self.load()[start:stop], start)

    def fingerprint(self) -> str:
        return " ".join(fingerprint(source) for source in self.sources)


@dataclass(frozen=True)
class Json:
    """A JSON file, read whole: a list of records, or the list found at `at`, a dotted path. A `*` at its end: an object of records,
    whose names they hold as `_name`. Plain values beside the list (`data_subtype`) count as fields of every record."""

    path: Path
    at: str = ""

    def cuts(self) -> list[Cut]:
        return regular_cuts(len(self._records()[1]))

    def rows(self, start: int, stop: int, fields: Sequence[str] | None = None) -> Iterator[Row]:
        beside, records = self._records()
        for number in range(start, stop):
            record = checked(records[number])
            yield number, {**beside, **record} if beside and isinstance(record, Mapping) else record

    def fingerprint(self) -> str:
        return fingerprint(self.path)

    def _records(self) -> tuple[Mapping, Sequence]:
        return _json_records(self.path, self.at, *signature(self.path))


@lru_cache(maxsize=2)
def _json_records(path: Path, at: str, size: int, changed: int) -> tuple[Mapping, Sequence]:
    value, walked, beside = load_json(path), [], {}
    for part in [part for part in at.split(".") if part]:
        if part == "*" and isinstance(value, dict):
            value = [{NAME: name, **record} if isinstance(record, dict) else record for name, record in value.items()]
            break
        if not isinstance(value, dict) or part not in value:
            raise DataError(f"{path}: no {part!r} at {'.'.join(walked) or 'the top'} ({_told(value)}); the option `at` is {at!r}")
        beside |= {name: held for name, held in value.items() if not isinstance(held, (list, dict))}
        walked.append(part)
        value = value[part]
    if not isinstance(value, list):
        raise DataError(f"{path}: a list of records is needed at {'.'.join(walked) or 'the top'}, found {_told(value)}. Say with the "
                        "option `at` where it is (`data.rows`), `*` for an object of records, or `.` if every file is one record")
    return beside, value


def _told(value: Any) -> str:
    if isinstance(value, dict):
        names = list(value)
        return f"an object with {len(names):,} names: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
    return f"a {type(value).__name__}"


@dataclass(frozen=True)
class Files:
    """Many small files, a record each. read: makes the record, or raises SampleRefused; the record's `_name` is the file's stem."""

    path: Path
    members: tuple[Path, ...]
    read: Callable[[Path], Any]

    def cuts(self) -> list[Cut]:
        return regular_cuts(len(self.members))

    def rows(self, start: int, stop: int, fields: Sequence[str] | None = None) -> Iterator[Row]:
        for number in range(start, stop):
            try:
                record = checked(self.read(self.members[number]))
            except SampleRefused as refusal:
                record = refusal
            yield number, {NAME: self.members[number].stem, **record} if isinstance(record, Mapping) else record

    def place(self, number: int) -> str:
        """A file's path from the folder, as keys may hold it: alike for no two files."""
        return "-".join(self.members[number].relative_to(self.path).with_suffix("").parts)

    def fingerprint(self) -> str:
        lines = [f"{member.relative_to(self.path)} {fingerprint(member)}" for member in self.members]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def one_object(path: Path) -> Mapping:
    """A small JSON file as a record. Raises SampleRefused: not_utf8, bad_json, bad_record."""
    record = _parsed(path.read_bytes())
    if isinstance(record, SampleRefused):
        raise record
    return record


def checked(record: Any) -> Mapping | SampleRefused:
    return record if isinstance(record, Mapping) else SampleRefused("bad_record", f"a record is an object, found {str(record)[:80]!r}")


@dataclass(frozen=True)
class JsonLines:
    """A JSON object a line, read as a stream. Empty lines are no records."""

    path: Path

    def cuts(self) -> list[Cut]:
        return regular_cuts(_line_starts(self.path, *signature(self.path))[0])

    def rows(self, start: int, stop: int, fields: Sequence[str] | None = None) -> Iterator[Row]:
        _, starts = _line_starts(self.path, *signature(self.path))
        with open(self.path, "rb") as file:
            file.seek(starts[start // CUT])
            number = start // CUT * CUT
            for line in file:
                if number >= stop:
                    return
                if line.strip():
                    if number >= start:
                        yield number, _parsed(line)
                    number += 1

    def fingerprint(self) -> str:
        return fingerprint(self.path)


@lru_cache(maxsize=64)
def _line_starts(path: Path, size: int, changed: int) -> tuple[int, tuple[int, ...]]:
    """(records, byte at which every CUT-th begins)."""
    starts, count, place = [], 0, 0
    with open(path, "rb") as file:
        for line in file:
            if line.strip():
                if count % CUT == 0:
                    starts.append(place)
                count += 1
            place += len(line)
    return count, tuple(starts)


def _parsed(line: bytes) -> Mapping | SampleRefused:
    try:
        return checked(json.loads(line.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        return SampleRefused("not_utf8", f"byte {error.start:,}")
    except (json.JSONDecodeError, RecursionError) as error:
        return SampleRefused("bad_json", str(error))


@dataclass(frozen=True)
class Csv:
    """Comma- or tab-separated values with a line of names first, read whole."""

    path: Path

    def cuts(self) -> list[Cut]:
        return regular_cuts(len(_csv_records(self.path, *signature(self.path))))

    def rows(self, start: int, stop: int, fields: Sequence[str] | None = None) -> Iterator[Row]:
        for number, record in enumerate(_csv_records(self.path, *signature(self.path))[start:stop], start):
            extra = record.get(None)
            yield number, SampleRefused("bad_record", f"more values than names: {str(extra)[:80]}") if extra else record

    def fingerprint(self) -> str:
        return fingerprint(self.path)


@lru_cache(maxsize=2)
def _csv_records(path: Path, size: int, changed: int) -> list[dict]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason}. Convert it, for example with iconv") from error
    except csv.Error as error:
        raise DataError(f"{path} is not CSV: {error}") from error


def has_lines(path: Path) -> bool:
    """Whether a file holds JSON lines, whatever it is called: its first line is an object, and another line follows."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return True
    with open(path, "rb") as file:
        first, more = file.readline(FIRST_LINE), file.readline(FIRST_LINE)
    return first.lstrip(b"\xef\xbb\xbf").startswith(b"{") and bool(more.strip()) and isinstance(_parsed(first), Mapping)
