"""Parquet files as public hubs have them: a column a field, pictures as {bytes, path}. Needs pyarrow (the extra `data`)."""

import importlib.util
from collections.abc import Collection, Iterator
from pathlib import Path

from nvlm_train.errors import DataError
from nvlm_train.evaluation.readers.files import found
from nvlm_train.evaluation.readers.records import Record

ROWS = 16       # in memory at a time: a row may hold several pictures


class Parquet:
    """The rows of several files, in the order of their names; row groups without a wanted row are not read."""

    def __init__(self, folder: Path, patterns: tuple[str, ...]):
        """Raises DataError: no such file, or pyarrow is not installed."""
        if importlib.util.find_spec("pyarrow") is None:
            raise DataError(f"{folder}: parquet files need pyarrow, which is not installed: pip install -e .[data]")
        self._files = [path for pattern in patterns for path in found(folder, pattern)]
        self.where = f"{folder}/{', '.join(patterns)}"

    def count(self) -> int:
        return sum(sum(rows) for _, rows in self._groups())

    def rows(self, wanted: Collection[int]) -> Iterator[Record]:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        left = set(wanted)
        first = 0
        for path, groups in self._groups():
            try:
                with ParquetFile(path) as file:
                    for group, rows in enumerate(groups):
                        if not left.isdisjoint(range(first, first + rows)):
                            yield from _rows(file, group, first, left)
                        first += rows
            except (ArrowException, OSError) as error:
                raise DataError(f"{path} is damaged: {error}. Copy it again") from error

    def _groups(self) -> Iterator[tuple[Path, list[int]]]:
        """Each file and the rows of its row groups."""
        from pyarrow import ArrowException
        from pyarrow.parquet import read_metadata

        for path in self._files:
            try:
                metadata = read_metadata(path)
            except (ArrowException, OSError) as error:
                raise DataError(f"{path} is not a whole parquet file: {error}. Copy it again") from error
            yield path, [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _rows(file, group: int, first: int, wanted: Collection[int]) -> Iterator[Record]:
    """The wanted rows of a row group whose first row has the number `first`."""
    number = first
    for batch in file.iter_batches(ROWS, row_groups=[group]):
        for offset in range(batch.num_rows):
            if number + offset in wanted:
                yield batch.slice(offset, 1).to_pylist()[0]
        number += batch.num_rows
