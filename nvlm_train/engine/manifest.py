"""The manifest of a checkpoint: what it is, what it holds, and the size and SHA-256 of every file of it.

No checkpoint format in common use notices a flipped bit, a zeroed block or files of two saves in one folder; all load, with
wrong weights. The manifest is written last, as JSON, and every file of the folder is listed in it.
"""

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvlm_train import __version__
from nvlm_train.config.layers import cross_layers
from nvlm_train.config.schema import NOT_OF_WEIGHTS, Run
from nvlm_train.errors import CheckpointError
from nvlm_train.optional import installed

MANIFEST = "manifest.json"
SCHEMA = 1
# Of a component's settings, those that came after the first checkpoints: in a fingerprint only if they differ from their defaults.
_LATER = {"first_norm", "class_token", "patch_bias", "activation", "mean", "std"}
_CHUNK = 1 << 22


@dataclass(frozen=True)
class FileRecord:
    size: int       # bytes
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint says of itself.

    save_id:     one random id for all files of a save
    cursor:      slots of the order consumed (contracts.StepBatch.cursor): all that resuming the data needs
    versions:    of what wrote it
    rng:         how randomness goes on after a resume
    extra:       further facts of the caller
    fingerprint: what a model must share to take these weights, see `fingerprint`
    config:      the whole Run that was training, as plain data
    files:       name -> size and hash of every file but the manifest itself
    contents:    section (model, optimizer) -> key -> [dtype, global shape without the layout's padding]
    """

    save_id: str
    step: int
    stage: str
    cursor: int
    versions: Mapping[str, str] = field(default_factory=dict)
    rng: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: Mapping[str, Any]
    config: Mapping[str, Any]
    files: Mapping[str, FileRecord]
    contents: Mapping[str, Mapping[str, list]]

    def write(self, folder: Path) -> None:
        """Write it into a folder, durably, with a hash over itself. Raises TypeError for what JSON cannot hold."""
        write_hashed(folder / MANIFEST, {"schema": SCHEMA, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a checkpoint folder. Raises CheckpointError if there is none, or it is damaged or of another schema."""
        path = folder / MANIFEST
        try:
            body = read_hashed(path, SCHEMA)
            del body["schema"]
            body["files"] = {name: FileRecord(int(record["size"]), str(record["sha256"]))
                             for name, record in body["files"].items()}
            return cls(**body)
        except FileNotFoundError:
            raise CheckpointError(f"{folder} has no {MANIFEST}: the save was not finished, or this is no checkpoint of "
                                  "nvlm_train") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
            raise CheckpointError(f"{path} cannot be read: {problem}") from problem

    def problem_with_files(self, folder: Path) -> str | None:
        """The first file that is missing, of another size, or not of this save; None if names and sizes are right."""
        present = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
        present.pop(MANIFEST, None)
        for name, record in self.files.items():
            if name not in present:
                return f"file {name} ({record.size:,} bytes) is missing"
            if (size := present[name].stat().st_size) != record.size:
                return f"file {name} should have {record.size:,} bytes and has {size:,}"
        if strangers := sorted(set(present) - set(self.files)):
            return f"file {strangers[0]} does not belong to this save ({len(strangers)} such); were two checkpoints mixed?"
        return None


def write_hashed(path: Path, body: Mapping) -> None:
    """A new JSON file with a hash over itself, durably. Raises TypeError for what JSON cannot hold."""
    body = json.loads(json.dumps(body))  # as it will be read
    with path.open("x", encoding="utf-8") as file:
        json.dump({**body, "sha256": _hash_of(body)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_hashed(path: Path, schema: int) -> dict[str, Any]:
    """What `write_hashed` wrote. Raises CheckpointError for another schema or a changed file, and what reading and JSON raise."""
    body = json.loads(path.read_text(encoding="utf-8"))
    if body.get("schema") != schema:
        raise CheckpointError(f"{path} has schema {body.get('schema')}; this version of nvlm_train reads schema {schema}")
    stated = body.pop("sha256")
    if stated != (found := _hash_of(body)):
        raise CheckpointError(f"{path} was changed after it was written: its own hash says {stated}, it gives {found}")
    return body


def _hash_of(body: Mapping) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def record_file(path: Path, durable: bool = False) -> FileRecord:
    """Size and SHA-256 of a file; `durable` also waits until its bytes are on the disk."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
        if durable:
            os.fsync(file.fileno())
    return FileRecord(size, digest.hexdigest())


def problem_with_file(folder: Path, name: str, expected: FileRecord) -> str | None:
    """How a file differs from its record; None if it does not."""
    try:
        found = record_file(folder / name)
    except OSError as problem:
        return f"file {name} cannot be read: {problem.strerror or problem}"
    if found.size != expected.size:
        return f"file {name} should have {expected.size:,} bytes and has {found.size:,}"
    if found.sha256 != expected.sha256:
        return f"file {name} was damaged or replaced after the save: SHA-256 should be {expected.sha256} and is {found.sha256}"
    return None


def fingerprint(run: Run, tokenizer_sha256: str) -> dict[str, Any]:
    """What two runs must share for one to take the other's weights: architecture, the sizes and settings that give the weights
    their meaning, and the tokenizer. Not in it: dtype, layout, kernels, file paths, tile tags, anything of the optimizer.
    """
    model = run.model
    parts = {"vision": model.vision, "connector": model.connector, "language": model.language}
    flat = {f"{part}.{name}": list(value) if isinstance(value, tuple) else value for part, settings in parts.items()
            for name, value in dataclasses.asdict(settings).items()
            if name not in NOT_OF_WEIGHTS and not (name in _LATER and value == getattr(type(settings), name))}
    if not model.connector.resampler_tokens:
        flat = {name: value for name, value in flat.items() if "resampler" not in name}
    cross = model.cross_attention
    if reading := cross_layers(model):
        flat["cross_attention.layers"] = list(reading)
        flat |= {f"cross_attention.{name}": getattr(cross, name) for name in ("heads", "kv_heads", "qk_norm", "ffn")}
    return {"architecture": model.architecture, **flat, "tokenizer": tokenizer_sha256}


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Where two fingerprints differ, both values given, in plain words. That only one has cross-attention its architecture says."""
    missing = "nothing"
    keys = [key for key in {**wanted, **saved} if not key.startswith("cross_attention.") or (key in saved and key in wanted)]
    return [f"{key}: {saved.get(key, missing)} in the checkpoint vs {wanted.get(key, missing)} here"
            for key in keys if saved.get(key, missing) != wanted.get(key, missing)]


def versions() -> dict[str, str]:
    """Versions of what writes the checkpoint."""
    found = {"nvlm_train": __version__, "python": platform.python_version()}
    for package in ("torch", "megatron-core"):
        found[package] = installed(package) or "not installed"
    return found
