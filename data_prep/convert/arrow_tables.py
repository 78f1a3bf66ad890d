"""Tables of Hugging Face `datasets`: parquet files, and the arrow streams that `save_to_disk` writes. Needs pyarrow, nothing else.

Pictures are {bytes, path} objects there: https://huggingface.co/docs/datasets/about_dataset_features.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from data_prep.convert.files import ends_fingerprint, signature
from data_prep.convert.tables import Cut, Row
from nvlm_train.errors import DataError

ROWS = 1000     # a unit: row groups are joined up to this many
BATCH = 32      # rows in memory at a time: a row may hold several pictures


def need_pyarrow(path: Path) -> None:
    """Raises DataError if pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(f"{path}: parquet and arrow files need pyarrow, which is not installed: pip install -e .[data]")


@dataclass(frozen=True)
class Parquet:
    """A parquet file, read by row groups and only in the columns that are needed."""

    path: Path

    def cuts(self) -> list[Cut]:
        return _joined(_row_groups(self.path, *signature(self.path)))

    def rows(self, start: int, stop: int, fields: Sequence[str] | None = None) -> Iterator[Row]:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        groups, first = [], 0
        for group, rows in enumerate(_row_groups(self.path, *signature(self.path))):
            if start <= first < stop:
                groups.append(group)
            first += rows
        try:
            with ParquetFile(self.path) as file:
                names = file.schema_arrow.names
                columns = None if fields is None else [name for name in names if name in fields]
                number = start
                for batch in file.iter_batches(BATCH, row_groups=groups, columns=columns):
                    for record in batch.to_pylist():
                        yield number, record
                        number += 1
        except (ArrowException, OSError) as error:
            raise DataError(f"{self.path} is damaged between rows {start:,} and {stop:,}: {error}. Copy it again") from error

    def fingerprint(self) -> str:
        return ends_fingerprint(self.path)


@lru_cache(maxsize=1024)
def _row_groups(path: Path, size: int, changed: int) -> tuple[int, ...]:
    """Rows of each row group."""
    need_pyarrow(path)
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        metadata = read_metadata(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole parquet file: {error}. Copy it again") from error
    return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


@dataclass(frozen=True)
class Arrow:
    """An arrow stream file, mapped into memory: its batches are skipped without being read."""

    path: Path

    def cuts(self) -> list[Cut]:
        return _joined(_batches(self.path, *signature(self.path)))

    def rows(self, start: int, stop: int, fields: Sequence[str] | None = None) -> Iterator[Row]:
        first = 0
        for batch in _stream(self.path):
            if start <= first < stop:
                wanted = batch if fields is None else batch.select([name for name in batch.schema.names if name in fields])
                for offset in range(0, wanted.num_rows, BATCH):
                    yield from enumerate(wanted.slice(offset, BATCH).to_pylist(), first + offset)
            first += batch.num_rows
            if first >= stop:
                return

    def fingerprint(self) -> str:
        return ends_fingerprint(self.path)


@lru_cache(maxsize=1024)
def _batches(path: Path, size: int, changed: int) -> tuple[int, ...]:
    return tuple(batch.num_rows for batch in _stream(path))


def _stream(path: Path) -> Iterator:
    need_pyarrow(path)
    from pyarrow import ArrowException, ipc, memory_map

    try:
        with memory_map(str(path)) as mapped, ipc.open_stream(mapped) as stream:
            yield from stream
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole arrow stream, as save_to_disk writes: {error}. Copy it again") from error


def _joined(rows: Sequence[int]) -> list[Cut]:
    """Neighbouring groups joined while they hold at most ROWS together; a larger group stays alone."""
    cuts, start, end = [], 0, 0
    for count in rows:
        if end > start and end + count - start > ROWS:
            cuts.append((start, end))
            start = end
        end += count
    return [*cuts, (start, end)] if end > start else cuts
