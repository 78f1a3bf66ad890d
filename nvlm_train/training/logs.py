"""The logs of a run: files of one JSON object a line, written by the main rank, read by people, reports and a resuming run.

metrics.jsonl   a row a training step, see `metrics`
eval.jsonl      a row a validation, {"stage", "step", "kind": "validation", "loss", "source_losses", "seconds"}, or a score, {"stage", "step",
                "kind": "score", "task", "scores"}, with "guard" where the text guard watches (`evaluation.guard.Verdict`)
examples.jsonl  a row an answered sample: {"stage", "step", "task", "key", "prompt", "answer", "truth", "correct"}; the newest ones with
                their pictures are in predictions.jsonl
samples.jsonl   {"stage", "step", "first_slot": n of its first slot, "ids": ["source/key", ...] in slot order,
                "refused": {"slot n": "reason"}}

All rows are strict JSON: a number that is not finite is null.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from nvlm_train.errors import TrainingError
from nvlm_train.training.metrics import Sink, StepRecord

METRICS, SAMPLES, EVAL, EXAMPLES = "metrics.jsonl", "samples.jsonl", "eval.jsonl", "examples.jsonl"

EXAMPLE = ("task", "key", "prompt", "answer", "truth", "correct")     # of a row of predictions.jsonl


def parse_row(line: bytes) -> dict | None:
    """The JSON object on a line, or None if it is not one."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def read_rows(path: Path) -> list[dict]:
    """The rows of a log, without lines that are not JSON objects (a crash may leave one at the end); [] if there is no file."""
    if not path.exists():
        return []
    return [row for row in map(parse_row, path.read_bytes().splitlines()) if row is not None]


class JsonLines:
    """Appends rows to a log. Each row is in the operating system's hands at once, on the disk after `sync`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (held open; `close` ends it)

    def append(self, row: dict) -> None:
        """Raises TrainingError if the row cannot be written (a full disk)."""
        try:
            self._file.write(json.dumps(finite(row), allow_nan=False, separators=(",", ":")) + "\n")
            self._file.flush()
        except OSError as error:
            raise TrainingError(f"cannot write {self.path}: {error.strerror}. Free some space, then resume") from error

    def sync(self) -> None:
        if not self._file.closed:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Logs(Sink):
    """Writes the four logs of a run directory."""

    def __init__(self, path: Path) -> None:
        self._all = [JsonLines(path / name) for name in (METRICS, SAMPLES, EVAL, EXAMPLES)]
        self._metrics, self._samples, self._eval, self._examples = self._all

    def step(self, record: StepRecord) -> None:
        self._metrics.append(record.row)
        self._samples.append({
            "stage": record.row["stage"], "step": record.row["step"], "first_slot": record.slots[0].n if record.slots else None,
            "ids": [f"{slot.source}/{slot.key}" for slot in record.slots],
            "refused": {str(slot.n): slot.refused for slot in record.slots if slot.refused is not None},
        })

    def evaluation(self, row: dict) -> None:
        self._eval.append(row)

    def scored(self, row: dict, shown: Sequence[dict]) -> None:
        self._eval.append(row)

    def examples(self, stage: str, step: int, rows: Sequence[dict]) -> None:
        for row in rows:
            self._examples.append({"stage": stage, "step": step, **{name: row[name] for name in EXAMPLE}})

    def sync(self) -> None:
        """Make the rows so far survive a power cut; called before each checkpoint, which must not know more than the logs."""
        for lines in self._all:
            lines.sync()

    def close(self) -> None:
        self.sync()
        for lines in self._all:
            lines.close()


def finite(value):
    """The same value with every number that JSON cannot hold (NaN, infinities) as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(item) for item in value]
    return value


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` so that a reader, or a crash, sees the old bytes or the new ones and nothing between."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
