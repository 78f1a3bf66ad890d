"""Does every rank see the same files: the run directory, the tokenizer, the weights and the indexes of the shards."""

import hashlib
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from nvlm_train.config.inputs import local_inputs
from nvlm_train.config.schema import Run
from nvlm_train.data.index import FOLDER_INDEX
from nvlm_train.data.tokenizer import file_of
from nvlm_train.doctor import PROBLEM, Finding
from nvlm_train.health.comparing import grouped, told
from nvlm_train.health.facts import Facts
from nvlm_train.health.roll import named

NONCE = ".seen-by-all-"
PATIENCE_S = 10.0       # a network file system shows another node's new file late
_UNREADABLE = "cannot be read: "


class Nonce:
    """Context manager: a file in the run directory that only rank 0 can have written. `name` is for the others; gone afterwards."""

    def __init__(self, run_dir: Path, writes: bool) -> None:
        self.name = f"{NONCE}{uuid.uuid4().hex}" if writes else ""
        self._path = run_dir / self.name

    def __enter__(self) -> Self:
        if self.name:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(exist_ok=False)
        return self

    def __exit__(self, *_) -> None:
        if self.name:
            self._path.unlink(missing_ok=True)


def sees(run_dir: Path, nonce: str, patience_s: float = PATIENCE_S) -> bool:
    """Whether rank 0's file is here too, asked again for a while."""
    until = time.monotonic() + patience_s
    while not (run_dir / nonce).exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def unshared(run_dir: Path, ranks: Sequence[Facts], seen: Sequence[bool]) -> Iterator[Finding]:
    """A finding if some rank did not see rank 0's file."""
    if blind := [rank for rank, saw in zip(ranks, seen, strict=True) if not saw]:
        hosts = ", ".join(dict.fromkeys(rank.host for rank in blind))
        yield Finding("run.dir", PROBLEM, f"{run_dir} is not shared: {named(rank.rank for rank in blind)} on {hosts} cannot see what rank 0 "
                                          f"on {ranks[0].host} writes there. Checkpoints need one folder that all nodes mount: set run.dir to it")


def inputs_of(runs: Sequence[Run]) -> dict[str, str]:
    """What these runs read (`local_inputs`) -> its hash, "there" for what is too large to hash, or `cannot be read: why`."""
    found = {}
    for key, path in (item for run in runs for item in local_inputs(run).items()):
        if key.startswith("data."):
            found[str(path)] = _hash(path / FOLDER_INDEX)
        elif key == "model.tokenizer":
            found[f"{key}={path}"] = _hash(file_of(path))
        else:
            found[str(path)] = "there" if path.exists() else f"{_UNREADABLE}there is no such file"
    return found


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        return f"{_UNREADABLE}{error.strerror or error}"


def unlike(ranks: Sequence[Facts], inputs: Sequence[dict[str, str]]) -> Iterator[Finding]:
    """A finding for each input that a rank cannot read, or that is not the same everywhere."""
    for name in dict.fromkeys(name for of_rank in inputs for name in of_rank):
        found = grouped(ranks, [of_rank.get(name, f"{_UNREADABLE}not asked for") for of_rank in inputs])
        if len(found) > 1:
            yield Finding(name, PROBLEM, f"differs: {told(found)}. Every node must read the same files")
        elif (only := next(iter(found))).startswith(_UNREADABLE):
            yield Finding(name, PROBLEM, f"{only}, on every rank")
