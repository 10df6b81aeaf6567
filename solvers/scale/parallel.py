"""Work on several programs at once, in a time that they share."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qplan.solvers.backends import SolverBackend

_Item = TypeVar("_Item")
_Done = TypeVar("_Done")


def each(work: Callable[[_Item, float], _Done], items: Sequence[_Item], until: float, workers: int) -> list[_Done]:
    """Do the work on every item, some at a time, telling each until when it may last: what others leave is shared."""

    def timed(place: int) -> _Done:
        now = time.perf_counter()
        share = min(1.0, workers / (len(items) - place))
        return work(items[place], now + max(until - now, 0.0) * share)

    if workers == 1 or len(items) == 1:
        return [timed(place) for place in range(len(items))]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(timed, range(len(items))))


def workers_of(backend: SolverBackend) -> int:
    """Return how many programs to work on at once: HiGHS runs outside Python's lock, others may mind company."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if backend.name == "highs" else 1
