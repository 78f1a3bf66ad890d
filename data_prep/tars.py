"""Tars from anywhere, listed: what is damaged, cut off or unsafe is refused by name, and nothing is extracted, run or unpickled."""

import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nvlm_train.data.index import check_key, check_shard_name
from nvlm_train.data.records import IMAGE_EXTENSIONS
from nvlm_train.errors import DataError

SHARD_EXTENSIONS = frozenset({"json", *IMAGE_EXTENSIONS})
_BLOCK = tarfile.BLOCKSIZE


def tar_members(path: Path, extensions: frozenset[str] | None = SHARD_EXTENSIONS) -> list[tarfile.TarInfo]:
    """Regular members of a tar, in order; extensions: those that may be there, None for any.

    Raises DataError for a tar that is damaged, cut off, or holds what a shard must not: other files, links, a name twice.
    """
    check_shard_name(path.name, path.parent)
    if not path.is_file():
        raise DataError(f"{path} is no plain file (nor a link to one): a shard is a tar")     # to open a pipe would wait for ever
    try:
        members = _listed(path)
        _refuse_other_end(path, members)
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:     # what tarfile raises on hostile bytes
        raise DataError(f"shard {path} is not a readable tar: {error}") from error
    members = [member for member in members if not member.isdir()]
    for member in members:
        check_key(member.name, str(path))
        extension = member.name.rpartition(".")[2].lower()
        if not member.isreg() or member.issparse():
            raise DataError(f"shard {path} holds {member.name}, a link, device or sparse file; a shard holds plain files only")
        if extensions is not None and extension not in extensions:
            raise DataError(f"shard {path} holds {member.name}; a shard holds json and pictures ({', '.join(sorted(IMAGE_EXTENSIONS))}) only, "
                            "nothing that other tools might run or unpickle")
    repeated = [name for name, count in Counter(member.name for member in members).items() if count > 1]
    if repeated:
        raise DataError(f"shard {path} holds {len(repeated)} members twice, {repeated[0]} first")
    return members


def _listed(path: Path) -> list[tarfile.TarInfo]:
    """Members in order. Raises DataError for a size below 0, or one that leads back to earlier members: tarfile would go round for ever."""
    members: list[tarfile.TarInfo] = []
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.size < 0 or (members and member.offset <= members[-1].offset):
                raise DataError(f"shard {path} is damaged: its list of members goes back at {member.name}, byte {member.offset:,}, of "
                                f"{member.size:,} bytes. Copy it again")
            members.append(member)
    return members


def _refuse_other_end(path: Path, members: Sequence[tarfile.TarInfo]) -> None:
    """Raises DataError unless two blocks of zeros, and nothing else, follow the last member.

    tarfile takes a damaged header, a cut between members, or a lost page of the disk for the end of the archive.
    """
    size = path.stat().st_size
    end = max((member.offset_data + -(-member.size // _BLOCK) * _BLOCK for member in members), default=0)
    last = members[-1].name if members else "its start"
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(2 * _BLOCK) != bytes(2 * _BLOCK):
            raise DataError(f"shard {path} is truncated or damaged: {size:,} bytes, and no end mark at byte {end:,}, after {last}. "
                            "Copy it again")
        while data := file.read(tarfile.RECORDSIZE):
            if data.count(0) < len(data):
                raise DataError(f"shard {path} is damaged, or several tars in one: {size:,} bytes, and it ends at byte {end:,}, after "
                                f"{last}. What follows would be lost: copy it again, or unpack the tars and pack them as one")
    if not members and size > tarfile.RECORDSIZE:
        raise DataError(f"shard {path} holds nothing but {size:,} bytes of zeros: its content is lost. Copy it again")


def key_and_suffix(name: str) -> tuple[str, str]:
    """webdataset's rule: the key ends at the first dot of the last part."""
    parent, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return parent + slash + stem, suffix
