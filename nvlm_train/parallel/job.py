"""Joining a job: which process this is, and the store in which all its processes can leave word.

Everything that can be wrong before the first collective is said here in one message: variables that contradict each other, a
rendezvous that does not answer, a port that somebody else has.
"""

import datetime
import os
import queue
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch.distributed as dist

from nvlm_train.errors import ConfigError, JobError, first_line

JOIN_LIMIT_S = 300      # for the others to start: images are pulled and packages imported at different speeds
_KNOCK_S = 0.2
_REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """What the launcher told this process. attempt: how often torchrun has restarted the job; agent: torchrun itself serves the
    store, otherwise rank 0 does."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    host: str = ""
    port: int = 0
    attempt: str = "0"
    agent: bool = False


@dataclass(frozen=True)
class Job:
    """A process that has found its job. The store's keys belong to this attempt of the job alone."""

    place: Place
    store: dist.Store

    def second_store(self, limit_s: float) -> dist.Store:
        """The same store over a connection of its own: a blocked call holds its connection, also against other threads."""
        if self.place.world == 1:
            return self.store
        return _connect(self.place, limit_s, serves=False)


def place_of(environment: Mapping[str, str]) -> Place:
    """Reads torchrun's variables; a world of one without them. Raises ConfigError with everything that is wrong with them."""
    if "RANK" not in environment:
        if environment.get("WORLD_SIZE", "1") != "1":
            raise ConfigError(f"WORLD_SIZE={environment['WORLD_SIZE']} is set, but RANK is not: start with torchrun or srun, which set "
                              "both, or unset WORLD_SIZE")
        return Place()
    if missing := [name for name in _REQUIRED if not environment.get(name)]:
        raise ConfigError(f"RANK={environment['RANK']} is set, but {', '.join(missing)} is not: start with torchrun or srun, which set "
                          "them all, or unset RANK")
    numbers, problems = {}, []
    for name, default in (("RANK", ""), ("WORLD_SIZE", ""), ("MASTER_PORT", ""), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "0")):
        text = environment.get(name, default)
        numbers[name] = int(text) if text.isdecimal() else 0
        if not text.isdecimal():
            problems.append(f"{name}={text} is no whole number")
    rank, world, local, beside = (numbers[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if not problems and rank >= world:
        problems.append(f"RANK={rank} does not lie in WORLD_SIZE={world}: ranks count from 0")
    if not problems and beside and local >= beside:
        problems.append(f"LOCAL_RANK={local} does not lie in LOCAL_WORLD_SIZE={beside}: ranks count from 0")
    if problems:
        raise ConfigError([f"{problem}. These variables come from torchrun or srun: do not set them by hand" for problem in problems])
    return Place(rank, world, local, environment["MASTER_ADDR"], numbers["MASTER_PORT"],
                 environment.get("TORCHELASTIC_RESTART_COUNT", "0"), environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True")


def join(timeout_s: float, environment: Mapping[str, str] = os.environ) -> Job:
    """Reach the job's store, or serve it. Waits at most `timeout_s`, and never more than JOIN_LIMIT_S; not for the other ranks.

    Raises ConfigError when the variables are wrong, JobError when the store cannot be served or reached.
    """
    place, limit = place_of(environment), min(timeout_s, JOIN_LIMIT_S)
    if place.world == 1 and not place.host:
        return Job(place, dist.HashStore())
    serves = place.rank == 0 and not place.agent
    if not serves:
        _await_server(place, limit)
    return Job(place, _connect(place, limit, serves))


def _connect(place: Place, limit_s: float, serves: bool) -> dist.Store:
    """Every restart of a torchrun job gets its own name space: gloo would otherwise read the dead peers' addresses.

    In a thread, since torch waits without end for a greeting from a server that is no rendezvous.
    """
    made: queue.SimpleQueue = queue.SimpleQueue()

    def make() -> None:
        try:
            made.put(dist.TCPStore(place.host, place.port, None, serves, datetime.timedelta(seconds=limit_s),
                                   wait_for_workers=False, multi_tenant=True))
        except RuntimeError as error:
            made.put(error)

    threading.Thread(target=make, name="rendezvous", daemon=True).start()
    try:
        store = made.get(timeout=limit_s + 1)
    except queue.Empty:
        raise JobError(f"{place.host}:{place.port} is open, but what listens there did not greet as a rendezvous within {limit_s:.0f} s: "
                       "another program has this port (set MASTER_PORT to a free one), or rank 0 hangs") from None
    if isinstance(store, RuntimeError):
        raise _refused(place, serves, store) from store
    return dist.PrefixStore(f"attempt-{place.attempt}", store)


def _refused(place: Place, serves: bool, error: RuntimeError) -> JobError:
    if serves and "EADDRINUSE" in str(error):
        return JobError(f"port {place.port} of {place.host} is taken by another process, and rank 0 needs it for the rendezvous: "
                        "set MASTER_PORT to a free one, or end the earlier job that still holds it")
    doing = "serve" if serves else "reach"
    return JobError(f"cannot {doing} the rendezvous at {place.host}:{place.port}: {first_line(error)}")


def _await_server(place: Place, limit_s: float) -> None:
    """Wait until somebody listens there. torch's own wait says neither how long it took nor what the last refusal was."""
    began, reason = time.monotonic(), "no answer"
    while (left := limit_s - (time.monotonic() - began)) > 0:
        try:
            socket.create_connection((place.host, place.port), timeout=max(0.1, min(5.0, left))).close()
            return
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
        time.sleep(min(_KNOCK_S, max(0.0, left)))
    who = "torchrun's first node" if place.agent else "rank 0"
    raise JobError(f"no rendezvous at {place.host}:{place.port} after {limit_s:.0f} s ({reason}): {who} must run there and be reachable. "
                   f"Look at its log; check that every node resolves {place.host} and may open port {place.port}")
