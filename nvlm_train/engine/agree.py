"""Work that may fail on one rank, finished by all ranks together: it succeeds everywhere or raises everywhere.

Without this, a rank whose disk is full raises while the others wait in the next collective until it times out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nvlm_train.engine.interface import Engine
from nvlm_train.errors import ConfigError, NvlmError


@dataclass(frozen=True)
class _Outcome:
    value: Any
    problem: str | None
    main: bool
    asked: bool = False     # the problem is what was asked for, not something that broke


def on_every_rank(engine: Engine, doing: str, work: Callable[[], Any], error: type[NvlmError]) -> list:
    """Every rank's `work()`, in rank order, on every rank. A collective: all ranks must call it.

    Raises `error` on every rank if the work failed on one, naming the rank; the failing rank's own exception is its cause there. A
    ConfigError stays one.
    """
    return [outcome.value for outcome in _gather(engine, doing, work, error)]


def on_main(engine: Engine, doing: str, work: Callable[[], Any], error: type[NvlmError]) -> Any:
    """What `work()` returns on the main rank, on every rank. A collective. Raises `error` on every rank if it failed there."""
    outcomes = _gather(engine, doing, work if engine.is_main else lambda: None, error)
    return next(outcome.value for outcome in outcomes if outcome.main)


def _gather(engine: Engine, doing: str, work: Callable[[], Any], error: type[NvlmError]) -> list[_Outcome]:
    cause = None
    try:
        mine = _Outcome(work(), None, engine.is_main)
    except Exception as problem:  # noqa: BLE001 (whatever it is, the other ranks must hear of it)
        cause = problem
        mine = _Outcome(None, _said(problem), engine.is_main, isinstance(problem, ConfigError))
    outcomes = engine.gather_objects(mine)
    failed = {rank: outcome.problem for rank, outcome in enumerate(outcomes) if outcome.problem is not None}
    if not failed:
        return outcomes
    rank, text = next(iter(failed.items()))
    if len(outcomes) == 1:
        where = ""
    else:
        where = f" on rank {rank}" if len(failed) == 1 else f" on {len(failed)} of {len(outcomes)} ranks, first rank {rank}"
    raise (ConfigError if outcomes[rank].asked else error)(f"{doing} failed{where}: {text}") from cause


def _said(problem: Exception) -> str:
    """What went wrong, in a line. A full disk reaches us as torch's "unexpected pos 704 vs 598"; the disk's own word is below."""
    if isinstance(problem, NvlmError):
        return str(problem)
    below: BaseException | None = problem
    while below is not None and not isinstance(below, OSError):
        below = below.__cause__ or below.__context__
    root = problem if below is None else below
    return f"{type(root).__name__}: {root}"
