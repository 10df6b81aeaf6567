"""Offering load: a schedule of requests sent open loop, whatever the server makes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from qplan.core.errors import InputError, MeasurementError
from qplan.measure.endpoint import Endpoint
from qplan.measure.load.prompts import Prompt
from qplan.measure.load.requests import Floats, Request, Requests

_POLL_S = 0.02
_CONNECTIONS = 65_536


class Observer(Protocol):
    """Watches a run while it goes on, and may end it."""

    def finished(self, request: Request) -> None:
        """Take a request that has just ended, whatever its outcome."""

    def stop(self) -> bool:
        """Say whether to stop now: nothing more is sent, requests in flight are cancelled. Polled about every 20 ms."""


def run_load(
    endpoint: Endpoint,
    schedule_s: Floats,
    prompts: Sequence[Prompt],
    *,
    timeout_s: float,
    processes: int = 1,
    observer: Observer | None = None,
) -> Requests:
    """Offer the schedule and return what happened to every request that was sent.

    Blocks until all are over. With several `processes`, each sends every n-th request of the one schedule on one clock.
    Raises this process's soft limit of open files.

    Parameters
    ----------
    endpoint
        Where to.
    schedule_s
        Ascending times from 0 at which to send, shape ``(n,)``.
    prompts
        What to send; used in turn, and again from the first when there are fewer than requests.
    timeout_s
        Longest time of a request from sending to its end.
    processes
        Processes that send; one is enough for about 400 requests a second.
    observer
        Called in this process.

    Raises
    ------
    MeasurementError
        Libraries are missing, or a sending process died.
    """
    _check(schedule_s, prompts, timeout_s, processes)
    try:
        import uvloop
    except ImportError:
        raise _missing() from None
    from qplan.measure.load.processes import offer_from_processes

    _allow_connections()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if processes == 1:
            return runner.run(offer(endpoint, schedule_s, prompts, timeout_s=timeout_s, observer=observer))
        return runner.run(offer_from_processes(endpoint, schedule_s, prompts, timeout_s, processes, observer))


async def offer(
    endpoint: Endpoint,
    schedule_s: Floats,
    prompts: Sequence[Prompt],
    *,
    timeout_s: float,
    observer: Observer | None = None,
    shard: tuple[int, int] = (0, 1),
    origin_s: float | None = None,
) -> Requests:
    """Offer the schedule from the running event loop; see :func:`run_load`.

    Parameters
    ----------
    endpoint, schedule_s, prompts, timeout_s, observer
        As for :func:`run_load`.
    shard
        ``(k, n)``: send only requests ``k``, ``k + n``, ``k + 2n`` ... of the schedule.
    origin_s
        Start of the run on :func:`time.perf_counter`; now, if it is not given.
    """
    _check(schedule_s, prompts, timeout_s, shard[1])
    try:
        from qplan.measure.load.client import Client
    except ImportError:
        raise _missing() from None
    done: list[Request] = []
    flights: set[asyncio.Task[None]] = set()
    async with Client(endpoint, timeout_s=timeout_s) as client:
        start_s, cpu_s = time.perf_counter() if origin_s is None else origin_s, time.process_time()

        async def fly(index: int, due_s: float) -> None:
            request = await client.send(index, due_s, prompts[index % len(prompts)], start_s)
            done.append(request)
            if observer is not None:
                observer.finished(request)

        async def dispatch(group: asyncio.TaskGroup) -> None:
            for index in range(shard[0], len(schedule_s), shard[1]):
                due_s = float(schedule_s[index])
                # At least once, so that requests that are under way go on when this one is late already; and again
                # when a timer of whole milliseconds rang early.
                await asyncio.sleep(start_s + due_s - time.perf_counter())
                while (early_s := start_s + due_s - time.perf_counter()) > 0:
                    await asyncio.sleep(max(early_s, 1e-3))
                flight = group.create_task(fly(index, due_s))
                flights.add(flight)
                flight.add_done_callback(flights.discard)

        try:
            async with asyncio.TaskGroup() as group:
                dispatcher = group.create_task(dispatch(group))
                while observer is not None and (flights or not dispatcher.done()):
                    await asyncio.sleep(_POLL_S)
                    if observer.stop():
                        # Each time: a flight that was just opening its connection can miss one.
                        for task in (dispatcher, *flights):
                            task.cancel()
        except ExceptionGroup as group_error:
            raise group_error.exceptions[0] from None
    return Requests.of(done, origin_s=start_s, cpu_s=time.process_time() - cpu_s)


def _check(schedule_s: Floats, prompts: Sequence[Prompt], timeout_s: float, processes: int) -> None:
    if len(schedule_s) and not prompts:
        raise InputError("no prompts to send")
    if timeout_s <= 0 or processes < 1:
        raise InputError(f"timeout of {timeout_s:g} s and {processes} processes; expected more than 0 and at least 1")


def _missing() -> MeasurementError:
    return MeasurementError("the load client needs uvloop and orjson: pip install 'qplan[measure]'")


def _allow_connections() -> None:
    """Raise the soft limit of open files, often 1,024: an overloaded server leaves thousands of requests open."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, _CONNECTIONS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
