"""Finds a benchmark's files in the folder that the user names, and reads the pictures that records name. Never outside that folder."""

import gzip
import json
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from nvlm_train.errors import DataError

MOST = 1 << 31      # bytes that a packed file may hold unpacked


def found(folder: Path, pattern: str) -> list[Path]:
    """The files that a name or glob means, sorted. Raises DataError: there is no such folder or file."""
    if not folder.is_dir():
        raise DataError(f"eval.data={folder}: there is no such folder")
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    if not files:
        raise DataError(f"{folder} has no {pattern}, which is how the public release calls it: put its files there as they are")
    return files


def only(folder: Path, pattern: str) -> Path:
    """The one file that a name or glob means. Raises DataError as `found`, and if there are several."""
    files = found(folder, pattern)
    if len(files) > 1:
        raise DataError(f"{folder}: {pattern} is to be one file, and {len(files)} fit: {files[0].name}, {files[1].name}")
    return files[0]


def text_of(path: Path) -> str:
    """A file's text, unpacked if its name ends in .gz. Raises DataError."""
    try:
        if path.suffix != ".gz":
            return path.read_text(encoding="utf-8-sig")
        with gzip.open(path) as file:
            data = file.read(MOST + 1)
        if len(data) > MOST:
            raise DataError(f"{path} unpacks to more than {MOST:,} bytes, so it is no benchmark")
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Copy it again") from error


def json_of(text: str, where: Path | str) -> Any:
    """Raises DataError for text that is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not whole JSON: {error}. Copy it again") from error


def picture(folder: Path, name: Any) -> bytes:
    """The picture that a record names, relative to `folder`. Raises DataError: it is not there, or not within the folder."""
    place = PurePosixPath(str(name))
    if place.is_absolute() or ".." in place.parts:
        raise DataError(f"a record names the picture {str(name)!r}, which is outside {folder}: these are not the public files")
    try:
        return (folder / place).read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"a record names the picture {str(folder / place)!r}, which cannot be read: {error}. The folder must hold all "
                        "pictures of its questions, or every score would be about other ones") from error
