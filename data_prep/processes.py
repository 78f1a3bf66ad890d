"""The same work on many items, in several processes."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from nvlm_train.errors import DataError

Item, Result = TypeVar("Item"), TypeVar("Result")


def results_of(work: Callable[[Item], Result], items: Sequence[Item], workers: int, what: str) -> Iterator[Result]:
    """What `work` returns for every item, in the order of finishing. work: a function of a module, or a `partial` of one.

    Raises what `work` raises, and DataError (which begins with `what`) if a process dies.
    """
    if workers <= 1 or len(items) <= 1:
        yield from map(work, items)
        return
    # spawn: threads of this process (of torch, of a progress bar) do not survive a fork, their locks do.
    with ProcessPoolExecutor(min(workers, len(items)), mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(f"{what}: a worker process died (killed, or out of memory). Fewer workers need less memory; started again, "
                            "the work goes on with the units that are not done") from error
        finally:
            pool.shutdown(cancel_futures=True)
