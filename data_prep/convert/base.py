"""What converters have in common: a source of a pass that walks tables of records and makes samples of each.

Units are `part-TABLE-CUT`, both numbers from 0: ranges of records that depend on the files alone, never on who works on them.
"""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from data_prep.convert import fields, files
from data_prep.convert.arrow_tables import Arrow, Parquet
from data_prep.convert.keys import key_of
from data_prep.convert.tables import Csv, Files, Json, JsonLines, Table, has_lines, one_object
from data_prep.convert.turns import place_images
from data_prep.passes import Kept, Outcome, Rejected
from nvlm_train.contracts import Sample, Turn
from nvlm_train.errors import DataError, SampleRefused

Paths = tuple[str, ...]
TABLES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")


@dataclass(frozen=True, kw_only=True)
class Converter(ABC):
    """A dataset in its public form. Subclasses say which tables it has and what becomes of one record.

    root: the dataset's folder. name: what keys, sources and metas call the dataset. task: what evaluation counts it for
    (default: what the family is for). where: `split=train` and the like; records of another value are rejected as `not_selected`.
    """

    TASK: ClassVar[str]

    root: Path
    name: str
    task: str = ""
    where: Paths = ()

    @abstractmethod
    def tables(self) -> Sequence[Table]:
        """The files of records. Raises DataError."""

    @abstractmethod
    def key(self, table: Table, number: int, record: Mapping | None) -> str:
        """Key of a record's sample, or the start of its samples' keys. record: None if it cannot be read."""

    @abstractmethod
    def convert(self, key: str, record: Mapping) -> Iterator[Outcome]:
        """The samples of one record. Raises SampleRefused if there is none."""

    def needed(self) -> Sequence[str] | None:
        """Fields of a record that are read, None for all."""
        return None

    def folders(self) -> Paths:
        """Where pictures lie that records name: the option `images`, if the family has it."""
        return getattr(self, "images", (".",))

    def check(self) -> None:
        """Raises DataError if what the options name is not there. Reads no pictures, and annotation files only by name."""
        files.existing_folders(self.root, self.folders())
        self.tables()
        if odd := [condition for condition in self.where if "=" not in condition]:
            raise DataError(f"where is like split=train; found {odd[0]!r}")

    # A pass's source

    def units(self) -> list[str]:
        return [f"part-{table:04d}-{cut:04d}" for table, of in enumerate(self.tables()) for cut in range(len(of.cuts()))]

    def outcomes(self, unit: str) -> Iterator[Outcome]:
        _, table, cut = unit.split("-")
        table = self.tables()[int(table)]
        wanted = self.needed()
        if wanted is not None:
            wanted = [*wanted, *(condition.partition(".")[0].partition("=")[0] for condition in self.where)]
        for number, record in table.rows(*table.cuts()[int(cut)], wanted):
            refused = isinstance(record, SampleRefused)
            key = self.key(table, number, None if refused else record)
            try:
                if refused:
                    raise record
                self._select(record)
                yield from self.convert(key, record)
            except SampleRefused as refusal:
                yield Rejected(key, refusal.reason, refusal.detail)

    def _select(self, record: Mapping) -> None:
        for condition in self.where:
            path, _, wanted = condition.partition("=")
            value = fields.lookup(record, path)
            if str(value) != wanted:
                raise SampleRefused("not_selected", f"{path} is {str(value)[:80]!r}, selected is {wanted!r}")

    def settings(self) -> dict:
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "root"}
        found = {files.relative(table.path, self.root): table.fingerprint() for table in self.tables()}
        return {"converter": type(self).__name__, **options, "files": found}

    # Making samples

    def sample(self, key: str, images: Sequence[bytes], turns: Sequence[Turn], **meta: Any) -> Sample:
        """A sample whose pictures have their places. Raises SampleRefused as `place_images`, and for what JSON or UTF-8 cannot hold."""
        placed, order = place_images(turns, len(images))
        meta = {"task": self.task or self.TASK, "dataset": self.name, **meta}
        try:
            json.dumps([[turn.text for turn in placed], meta], ensure_ascii=False, allow_nan=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise SampleRefused("not_unicode", f"half of a surrogate pair: {error.object[max(error.start - 20, 0):error.end]!r}") from error
        except (TypeError, ValueError) as error:
            raise SampleRefused("bad_field", f"{error}: {str(meta)[:80]}") from error
        return Sample(key, self.name, tuple(images[place] for place in order), placed, meta)


def outcome(key: str, make: Callable[[], Sample]) -> Outcome:
    """What becomes of one sample among several of a record."""
    try:
        return Kept(make())
    except SampleRefused as refusal:
        return Rejected(key, refusal.reason, refusal.detail)


@dataclass(frozen=True, kw_only=True)
class RecordConverter(Converter):
    """A dataset of records in JSON, JSON lines, CSV, parquet or arrow files.

    Subclasses have an option, called as FILES says, for the files' names or globs, relative to the root. at: where in a JSON file the
    list of records is, a dotted path; `*` for an object of records; `.` if every file is one record. id: field whose values name the
    samples; by default their place in the file does. Keys are NAME-FILE-ID; a record whose id an earlier one has is called
    NAME-FILE-ID-again-NUMBER.
    """

    FILES: ClassVar[str] = "records"

    at: str = ""
    id: str = ""

    def tables(self) -> list[Table]:
        found = files.find(self.root, getattr(self, self.FILES))
        if self.at == ".":
            return [Files(self.root, tuple(found), one_object)]
        return [table_of(path, self.at) for path in found]

    def key(self, table: Table, number: int, record: Mapping | None) -> str:
        if isinstance(table, Files):
            return key_of(self.name, table.place(number))
        place = files.relative(table.path.with_suffix(""), self.root).replace("/", "-")
        value = fields.lookup(record, self.id) if self.id and record is not None else None
        if value is None or value == "":
            return key_of(self.name, place, number)
        if first_with(table, self.id, files.signature(table.path))[str(value)] != number:
            return key_of(self.name, place, value, "again", number)     # public ids repeat: nothing is lost for that
        return key_of(self.name, place, value)

    def named(self, record: Mapping, image: str) -> Any:
        """What a record says of its picture: the field `image`, or, where that has braces, a template of fields. None if one is empty."""
        if "{" not in image:
            return fields.lookup(record, image)
        empty = any(fields.lookup(record, path) in (None, "") for path in fields.places(image))
        return None if empty else fields.filled(image, record)

    def pictures(self, value: Any) -> tuple[bytes, ...]:
        """Pictures of a field: a file name, {bytes, path} as `datasets` stores it, bytes, or a list of these; none for nothing."""
        if value is None or value == "" or (isinstance(value, (list, tuple)) and not value):
            return ()
        if isinstance(value, (list, tuple)):
            return tuple(picture for item in value for picture in self.pictures(item))
        if isinstance(value, Mapping):
            value = value["bytes"] if value.get("bytes") else value.get("path")
        return (value,) if isinstance(value, bytes) else (files.read_image(self.root, self.folders(), value),)


@dataclass(frozen=True, kw_only=True)
class OneSample(RecordConverter):
    """A dataset with one sample in each record."""

    def convert(self, key: str, record: Mapping) -> Iterator[Outcome]:
        yield Kept(self.made(key, record))

    @abstractmethod
    def made(self, key: str, record: Mapping) -> Sample:
        """The sample of a record. Raises SampleRefused."""


def table_of(path: Path, at: str = "") -> Table:
    """The table that fits a file's name. Raises DataError."""
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise DataError(f"{path}: records come in {', '.join(TABLES)} files")
    if suffix in (".parquet", ".arrow"):
        return Parquet(path) if suffix == ".parquet" else Arrow(path)
    if suffix in (".csv", ".tsv"):
        return Csv(path)
    return JsonLines(path) if not at and has_lines(path) else Json(path, at)


@lru_cache(maxsize=2)
def first_with(table: Table, field: str, signature: tuple[int, int]) -> Mapping[str, int]:
    """Value of a field -> number of the first record that has it."""
    first: dict[str, int] = {}
    for cut in table.cuts():
        for number, record in table.rows(*cut, [field.partition(".")[0]]):
            if isinstance(record, Mapping):
                first.setdefault(str(fields.lookup(record, field)), number)
    return first
