"""Watching the replicas: are they there, what do their engines say, and is a stream stuck."""

from __future__ import annotations

import asyncio
import time

from qplan.measure.engines.metrics_text import read_state
from qplan.measure.load.http1 import HttpError
from qplan.router.breaker import Circuit
from qplan.router.dispatch import Dispatcher
from qplan.router.logs import Log
from qplan.router.replicas import Flight, Replica, Rest

_MISSED = 2
_LEAST_TIMEOUT_S = 1.0


async def watch(replica: Replica, dispatcher: Dispatcher, log: Log) -> None:
    """Check a replica again and again until it leaves the fleet.

    One that fails two checks in a row counts as gone: its circuit opens, and what waits there for a first token goes
    elsewhere. One that answers again gets a request on trial.
    """
    missed, says_state = 0, True
    while not replica.leaving:
        if replica.rest in (Rest.ASLEEP, Rest.WAKING):  # not expected to answer
            missed = 0
            await asyncio.sleep(dispatcher.limits.health)
            continue
        timeout_s = max(dispatcher.limits.health, _LEAST_TIMEOUT_S)
        why = await _check(replica, timeout_s)
        before = replica.breaker.state
        if why:
            missed += 1
            if missed >= _MISSED:
                replica.breaker.trip()
                replica.give_up(HttpError(f"the replica is gone: {why}"))
        else:
            missed = 0
            replica.breaker.mend()
            if says_state:
                says_state = await _ask_engine(replica, timeout_s)
            dispatcher.wake()
        if replica.breaker.state is not before:
            log.write("circuit", replica=replica.name, state=replica.breaker.state, reason=why or "healthy again")
        await asyncio.sleep(dispatcher.limits.health)


async def sweep(dispatcher: Dispatcher) -> None:
    """End what does not move any more: no answer comes, a stream goes silent, or a client does not read.

    One look a second at all of them costs less than a timer for each.
    """
    while True:
        limits = dispatcher.limits
        await asyncio.sleep(min(limits.first_token / 4, limits.stall / 4, 1.0))
        now_s = time.perf_counter()
        for flight in dispatcher.flights():
            if not flight.first_s:
                if now_s - flight.sent_s > (limits.first_token if flight.ask.stream else limits.answer):
                    _fail(flight, "no answer in time")
            elif now_s - flight.last_s > limits.stall:
                if flight.writing and flight.client is not None:
                    flight.client.abort()
                else:
                    _fail(flight, "the replica went silent")


def _fail(flight: Flight, reason: str) -> None:
    if flight.connection is not None:
        flight.connection.fail(HttpError(reason))


async def _check(replica: Replica, timeout_s: float) -> str:
    """Return what is wrong with a replica; empty where nothing is."""
    try:
        status, _ = await replica.upstream.get("/health", timeout_s=timeout_s)
    except TimeoutError:
        return f"no answer in {timeout_s:g} s"
    except (HttpError, OSError) as error:
        return str(error) or type(error).__name__
    return f"status {status}" if status >= 500 else ""


async def _ask_engine(replica: Replica, timeout_s: float) -> bool:
    """Take what the engine says is under way; return whether it is worth asking again."""
    try:
        status, body = await replica.upstream.get("/metrics", timeout_s=timeout_s)
    except (HttpError, OSError, TimeoutError):
        return True
    if status != 200:
        replica.seen_by_engine(None)
        return False
    state = read_state(body.decode("utf-8", "replace"))
    known = state.running is not None
    replica.seen_by_engine((state.running or 0) + (state.waiting or 0) if known else None)
    return known


def standing(replica: Replica) -> str:
    """Return in a word how a replica is."""
    if replica.rest is not Rest.AWAKE:
        return replica.rest
    return {Circuit.CLOSED: "up", Circuit.OPEN: "down", Circuit.HALF_OPEN: "on trial"}[replica.breaker.state]
