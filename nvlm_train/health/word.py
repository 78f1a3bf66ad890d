"""Why a job ended: the first rank that failed leaves word in the store, and every other rank says that instead of its own noise."""

import json
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

from nvlm_train.errors import first_line
from nvlm_train.parallel.job import Job
from nvlm_train.redaction import redact_text

_KEY = "failure"
_PEERS = ("gloo", "nccl", "c10d", "connection closed by peer", "connection reset by peer", "broken pipe")
_TORCH_DISTRIBUTED = str(Path(dist.__file__).parent)


@dataclass(frozen=True)
class Failure:
    """What ended a job. place: as Beat.place; error: one line, the exception's kind and text."""

    rank: int
    host: str
    place: str
    error: str

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}) failed {self.place}: {self.error}"


def words_of(job: Job) -> dist.Store:
    """The part of a job's store in which ranks say how they are."""
    return dist.PrefixStore("health", job.store)


def failure_of(rank: int, place: str, error: BaseException) -> Failure:
    said = first_line(error)
    if isinstance(error, SystemExit):
        said = f"it left early with code {error.code or 0}"
    else:
        said = f"{type(error).__name__}: {redact_text(said)}" if said else type(error).__name__     # it goes into status.json
    return Failure(rank, socket.gethostname(), place, said)


def leave_word(store: dist.Store, failure: Failure) -> Failure:
    """The job's failure: this one, if no rank was first."""
    text = json.dumps(asdict(failure))
    return Failure(**json.loads(store.compare_set(_KEY, "", text)))


def word(store: dist.Store) -> Failure | None:
    """What ended the job, if some rank has said so."""
    return Failure(**json.loads(store.get(_KEY))) if store.check([_KEY]) else None


def await_word(store: dist.Store, limit_s: float) -> Failure | None:
    until = time.monotonic() + limit_s
    while (found := word(store)) is None and time.monotonic() < until:
        time.sleep(0.1)
    return found


def from_peers(error: BaseException) -> bool:
    """Whether an error only says that other ranks have gone: it comes out of a collective or of the store."""
    if isinstance(error, dist.DistError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    inside = frame is not None and frame.tb_frame.f_code.co_filename.startswith(_TORCH_DISTRIBUTED)
    return inside or any(sign in str(error).lower() for sign in _PEERS)
