"""What wandb has written, read back from its own log: blocks of 32 KiB with records in the form of LevelDB's log, each a protocol buffer."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

_BLOCK, _FILE_HEADER, _RECORD_HEADER = 32768, 7, 7
_WHOLE, _LAST = 1, 4


def records(path: Path) -> Iterator:
    """The records of a `run-ID.wandb` file, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), _FILE_HEADER, b""
    assert data.startswith(b":W&B")
    while at + _RECORD_HEADER <= len(data):
        room = _BLOCK - at % _BLOCK
        _, length, kind = struct.unpack("<IHB", data[at:at + _RECORD_HEADER]) if room >= _RECORD_HEADER else (0, 0, 0)
        if not kind:
            at += room
            continue
        parts += data[at + _RECORD_HEADER:at + _RECORD_HEADER + length]
        at += _RECORD_HEADER + length
        if kind in (_WHOLE, _LAST):
            yield Record.FromString(parts)
            parts = b""


def stores(run_dir: Path) -> list[Path]:
    """The offline logs of a run directory, oldest first, once wandb's own process has written them out."""
    import wandb

    wandb.teardown()
    return sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.parent.name)


def history(path: Path) -> list[dict]:
    """The rows that were logged into a file."""
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for record in records(path) if record.WhichOneof("record_type") == "history"]


def run_record(path: Path):
    """The record that names the run."""
    return next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")
