"""Finds and reads a dataset's files. What a user names may be missing (an error); what a record names may be wrong (one sample less).

Nothing here runs, unpickles or downloads anything, and no record can name a file outside the folder of pictures.
"""

import errno
import glob
import hashlib
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from nvlm_train.data.shards import file_sha256
from nvlm_train.errors import DataError, SampleRefused

PICKLED = (".p", ".pkl", ".pickle", ".pth", ".pt", ".npy", ".npz", ".joblib")
ENDS = 1 << 16      # bytes at either end of a large data file that its fingerprint covers


def find(root: Path, patterns: Sequence[str]) -> list[Path]:
    """The files that names or globs relative to `root` stand for, sorted, each once.

    Raises DataError: a pattern leaves the root, fits no file, or names a pickle.
    """
    found: set[Path] = set()
    for pattern in patterns:
        if _climbs(pattern):
            raise DataError(f"{pattern!r} leaves the dataset's folder; name files relative to {root}")
        names = [name for name in glob.glob(pattern, root_dir=root, recursive=True) if (root / name).is_file()]
        if not names:
            raise DataError(f"no file {pattern!r}: looked at {root / pattern}. Paths and globs are relative to the dataset's folder")
        found.update(root / name for name in names)
    for path in sorted(found):
        refuse_pickle(path)
    return sorted(found)


def find_one(root: Path, name: str) -> Path:
    """The one file that a name stands for. Raises DataError as `find`, and if there are several."""
    found = find(root, [name])
    if len(found) > 1:
        raise DataError(f"{name!r} is to be one file, and fits {len(found)} under {root}: {found[0].name}, {found[1].name} …")
    return found[0]


def refuse_pickle(path: Path) -> None:
    """Raises DataError for files that some libraries would run on reading."""
    if path.suffix.lower() in PICKLED:
        raise DataError(f"{path} is a pickle by its name, and reading a pickle runs code of whoever made it. Convert it to JSON first, "
                        "on a machine where that may happen")


def existing_folders(root: Path, folders: Sequence[str]) -> None:
    """Raises DataError if a folder of pictures is not there."""
    for folder in folders:
        if _climbs(folder):
            raise DataError(f"{folder!r} leaves the dataset's folder; name folders relative to {root}")
        if not (root / folder).is_dir():
            raise DataError(f"no folder of pictures at {root / folder}; folders are relative to the dataset's folder")


def _climbs(name: str) -> bool:
    return name.startswith("/") or ".." in PurePosixPath(name).parts


def read_image(root: Path, folders: Sequence[str], name: Any) -> bytes:
    """Bytes of the picture that a record names, from the first of the folders that has it.

    Raises SampleRefused: missing_image, unsafe_path (it is absolute, climbs, or is a link out of the folder). DataError if the file
    is there and the system cannot read it.
    """
    if not isinstance(name, str) or not name:
        raise SampleRefused("missing_image", f"the record names no picture, found {str(name)[:80]!r}")
    if any("\ud800" <= char <= "\udfff" for char in name):
        raise SampleRefused("missing_image", "the picture's name holds half of a surrogate pair, which no file has")
    if _climbs(name) or "\\" in name or "\0" in name:
        raise SampleRefused("unsafe_path", f"{name[:120]!r} is absolute or climbs out of the folder of pictures")
    for folder in folders:
        path = root / folder / name
        if _links_out(root / folder, name):
            raise SampleRefused("unsafe_path", f"{name[:120]!r} is a link out of {root / folder}")
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                continue
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
    where = "in " + ", ".join(str(root / folder) for folder in folders)
    told = "it is an address, and nothing is downloaded" if "://" in name else where
    raise SampleRefused("missing_image", f"no {name[:120]!r}: {told}")


def _links_out(folder: Path, name: str) -> bool:
    """Whether a link on the way from the folder (which may be a link itself: a user named it) to the file leads out of it."""
    path = str(folder)
    for part in PurePosixPath(name).parts:
        path = os.path.join(path, part)
        if os.path.islink(path):
            return not (folder / name).resolve().is_relative_to(folder.resolve())
    return False        # no links, as almost always: resolving every path would take half of a conversion's time


def load_json(path: Path) -> Any:
    """A whole JSON file, kept in memory until another one is asked for. Not to be changed by the caller.

    Raises DataError: not UTF-8, or not JSON (with the line).
    """
    return _load_json(path, *signature(path))


@lru_cache(maxsize=2)       # two: VQA v2 has its questions in one file and its answers in another
def _load_json(path: Path, size: int, changed: int) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start:,}): convert it, for example with iconv") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}. Was it downloaded whole?") from error


def signature(path: Path) -> tuple[int, int]:
    """Changes when a file does: a key for what is remembered of it within one process."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes, hex, computed once a process."""
    return _fingerprint(path, *signature(path))


@lru_cache(maxsize=4096)
def _fingerprint(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)


def ends_fingerprint(path: Path) -> str:
    """SHA-256 over size, first and last 64 KiB: for files of many GB that hold pictures. A parquet file's end lists all its parts."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}\n".encode())
    with open(path, "rb") as file:
        digest.update(file.read(ENDS))
        file.seek(max(size - ENDS, 0))
        digest.update(file.read(ENDS))
    return digest.hexdigest()


def relative(path: Path, root: Path) -> str:
    return os.path.relpath(path, root)
